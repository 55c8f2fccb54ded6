"""Instances whose steps take as long as a cost model says: many of them, on few cores, behave as a slower machine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from ..cluster.instance import Instance
from ..engine.flight import Flight
from ..engine.model import Meanwhile
from ..engine.runner import Runner
from ..engine.server import InstanceServer
from ..engine.step import StepItem
from ..policy.cost import CostModel, Law, Piece, StepCost, StepShape

WHERE = f"{__name__}:PacedInstance"
"""For `Cluster.start`."""


def slower(cost: CostModel, times: float) -> CostModel:
    """The same with steps that take so many times as long."""

    def piece(known: Piece) -> Piece:
        return Piece(**{entry.name: times * getattr(known, entry.name) for entry in fields(known)})

    def law(known: Law) -> Law:
        return replace(known, below=piece(known.below), above=piece(known.above))

    return replace(cost, step=StepCost(prefill=law(cost.step.prefill), decode=law(cost.step.decode)))


def shape_of(items: Sequence[StepItem]) -> StepShape:
    """What the cost of a step depends on."""
    chunks = [(len(item.tokens), item.start) for item in items if len(item.tokens) > 1 or not item.start]
    contexts = [item.start + 1 for item in items if len(item.tokens) == 1 and item.start]
    return StepShape.of(chunks, contexts)


class PacedServer(InstanceServer):
    """Its model waits after each step until the time that `cost` predicts for it has passed."""

    def _load(self):
        spec, runner = super()._load()
        assert self._cost is not None, "there is no pace without a cost model"
        return spec, _Paced(runner, self._cost.step)


class PacedInstance(Instance):
    server_class = PacedServer


class _Paced(Runner):
    """A runner that is another one, but for its steps' time."""

    def __init__(self, runner: Runner, cost: StepCost, sleep: Callable[[float], None] = time.sleep):
        self.__dict__.update(runner.__dict__)
        self._cost = cost
        self._sleep = sleep

    def launch(
        self, items: Sequence[StepItem], after: Flight | None = None, meanwhile: Meanwhile = lambda: None
    ) -> Flight:
        began = time.monotonic()
        flight = super().launch(items, after, meanwhile)
        left_s = self._cost.predict(shape_of(items)) - (time.monotonic() - began)
        if left_s > 0:
            self._sleep(left_s)
        return flight
