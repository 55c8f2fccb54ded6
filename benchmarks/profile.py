"""Measures what steps and copies cost on this machine, and fits the cost model to it.

One runner in this process, made as an instance makes it, runs steps of a designed sample of shapes, in turns, so that
whatever else the machine does meets all shapes alike. A turn's time is that of the clock less what the thread waited
for a core, where that can be told; a shape's is the median of its turns. What a round
of the engine spends around its step is timed apart and added. A quarter of the shapes is held out of the
fit, and the errors told are theirs. Copies go between two processes over the shipped transports, and within one to
host memory; how long two processes waited for cores cannot be told, so a size's time is that of the tenth of its
copies that were fastest.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch

from ..cluster.fit import (
    CopySample,
    StepSample,
    copy_errors,
    fit_link,
    fit_steps,
    held_out,
    step_errors,
)
from ..cluster.profile import FitError, Profile, Provenance
from ..engine.config import EMBEDDED, EngineConfig
from ..engine.layout import CacheLayout
from ..engine.runner import Runner
from ..policy.cost import CostModel, LinkCost, StepCost, StepShape
from . import surroundings, transfer
from .figures import Report, machine, progress, revision
from .scatter import Point, Scatter
from .step_plans import StepPlan, draw_plans, items

FIGURES = ("step_error_p50", "step_error_p90", "copy_error_p50")
SHAPES = 180
MOST_TURNS = 15
FEWEST_TURNS = 3
HELD_OUT = 4
"""One shape in so many is held out of the fit."""
FIRST_SHARE = 0.25
"""Share of the time in which the first turn must end; what it does not reach is not measured."""
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Sizes of the copies."""
COPY_ROUNDS = 20
CALM = 0.1
"""Share of the copies of one size that are taken to have had their cores."""
COPY_MEMORY_BYTES = 128 << 20


@dataclass(frozen=True)
class Measured:
    """A profile with the samples behind it."""

    profile: Profile
    fitted: Sequence[StepSample]
    held: Sequence[StepSample]
    links: dict[str, Sequence[CopySample]]
    command: str

    def report(self) -> Report:
        error = self.profile.error
        shares = (error.step_p50, error.step_p90, error.copy_p50)
        figures = {name: share for name, share in zip(FIGURES, shares, strict=True) if share is not None}
        return Report(command=self.command, figures=figures, units=dict.fromkeys(figures, "1"))

    def scatter(self) -> Scatter:
        step = self.profile.cost.step
        points = [
            Point(sample.seconds, step.predict(sample.shape), series)
            for series, samples in enumerate((self.fitted, self.held))
            for sample in samples
        ]
        return Scatter(f"Step times of {self.profile.model}", points, ("in the fit", "held out"))


def measure(config: EngineConfig, seconds: float = 120.0, seed: int = 0) -> Measured:
    """Measure steps for about `seconds`, then copies, and fit.

    `ValueError` where the checkpoint cannot be served, or too little is measured in that time.
    """
    load = os.getloadavg()[0]
    runner = Runner(config)
    for layer in (layer for part in runner.cache.parts for layer in part.layers):
        layer.normal_()  # a page that was never written is one page of zeros for all
    try:
        around = surroundings.measure(config, runner)
        steps = _steps(runner, seconds, seed, around)
        links = _copies(runner, seed)
    finally:
        runner.close()
    fitted, held = held_out([step.sample() for step in steps], HELD_OUT, seed)
    step_cost = fit_steps(fitted, seed)
    link_costs, copy_error = _fit_links(links, seed)
    layout = runner.layout
    profile = Profile(
        model=config.folder.resolve().name,
        machine=machine(),
        dtype=layout.dtype,
        tensor_parallel=config.tensor_parallel,
        gpus=int(runner.device.type == "cuda"),
        cost=CostModel(
            step=step_cost,
            kv_bytes_per_token=layout.block_bytes // layout.block_size,
            capacity_tokens=layout.blocks * layout.block_size,
            links=link_costs,
        ),
        provenance=_provenance(steps, load),
        error=_error(step_cost, held, copy_error),
    )
    model = "" if config.model == EMBEDDED else f" --model {config.model}"
    return Measured(profile, fitted, held, links, f"profile{model} --seconds {seconds:g} --seed {seed}")


def _provenance(steps: Sequence[StepTurns], load: float) -> Provenance:
    turns = [turn for step in steps for turn in step.turns]
    waited = sum(turn.waited_s for turn in turns) / sum(turn.seconds for turn in turns)
    note = (
        f"{len(steps)} shapes of steps, {min(len(step.turns) for step in steps)} turns or more each; one shape in "
        f"{HELD_OUT} held out. Waiting for a core, {waited:.0%} of the time, is left out. Load average at the start: "
        f"{load:.1f}. Steps are the runner's; what a round of the engine spends around them was timed "
        f"apart, over decodes in batches of {', '.join(map(str, surroundings.BATCHES))}, and is added by the number "
        f"of sequences."
    )
    return Provenance(source="penstock profile", date=date.today(), revision=revision(), note=note)


def _error(cost: StepCost, held: Sequence[StepSample], copy_error: float) -> FitError:
    errors = step_errors(cost, held)
    return FitError(
        basis="shapes and sizes held out of the fit",
        step_mean=float(errors.mean()),
        step_p50=float(np.quantile(errors, 0.5)),
        step_p90=float(np.quantile(errors, 0.9)),
        step_max=float(errors.max()),
        copy_p50=copy_error,
    )


# ---- steps


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of a step."""

    seconds: float
    waited_s: float
    """The part of it in which the thread had no core; 0 where that cannot be told."""


@dataclass(frozen=True, slots=True)
class StepTurns:
    """All runs of one shape."""

    shape: StepShape
    turns: Sequence[Turn]
    around_s: float = 0.0
    """What a round spends around such a step."""

    def sample(self) -> StepSample:
        step_s = statistics.median(turn.seconds - turn.waited_s for turn in self.turns)
        return StepSample(self.shape, step_s + self.around_s)


def _steps(runner: Runner, seconds: float, seed: int, around: surroundings.Surroundings) -> list[StepTurns]:
    """The shapes that could be measured, in turns until the time is over or each had enough."""
    plans = draw_plans(SHAPES, seed, runner.spec.max_positions, runner.layout)
    random.Random(seed).shuffle(plans)
    ends = time.monotonic() + seconds
    first_ends = time.monotonic() + FIRST_SHARE * seconds
    turns: list[list[Turn]] = []
    with progress("steps", SHAPES * MOST_TURNS) as advance:
        while len(turns) < len(plans) and time.monotonic() < first_ends:
            turns.append([_turn(runner, plans[len(turns)], len(turns))])
            advance(1)
        for count in range(1, MOST_TURNS):
            for place, plan in enumerate(plans[: len(turns)]):
                if time.monotonic() < ends or count < FEWEST_TURNS:
                    turns[place].append(_turn(runner, plan, place))
                    advance(1)
    return [
        StepTurns(plan.shape, those, around.predict(len(plan.sequences())))
        for plan, those in zip(plans, turns, strict=False)
    ]


def _turn(runner: Runner, plan: StepPlan, seed: int) -> Turn:
    """The step when it follows its like, as a decode follows a decode."""
    work = items(plan, runner.layout, runner.spec.vocab, seed)
    runner.step(work)
    cpu, started = time.thread_time(), time.perf_counter()
    runner.step(work)  # ends with the sampled tokens on the CPU, so a GPU is waited for
    seconds = time.perf_counter() - started
    # The thread's CPU time tells how long it waited only where it does all the work.
    alone = runner.device.type == "cpu" and torch.get_num_threads() == 1 and not runner.ranked
    return Turn(seconds, max(0.0, seconds - (time.thread_time() - cpu)) if alone else 0.0)


# ---- copies


def _copies(runner: Runner, seed: int) -> dict[str, Sequence[CopySample]]:
    """The time of each size over each link. Blocks are neighbours, as a sequence's are while there is room."""
    layout = replace(runner.layout, blocks=max(16, min(512, COPY_MEMORY_BYTES // runner.layout.block_bytes)))
    sizes = [blocks for blocks in BLOCKS if blocks <= layout.blocks // 2]
    links: dict[str, Sequence[CopySample]] = {
        "host": _host_copies(runner, [blocks for blocks in sizes if blocks <= runner.layout.blocks])
    }
    if runner.device.type == "cpu":
        links |= _between_processes(("local", "gloo"), layout, sizes, seed)
    return links


def _between_processes(
    ways: Sequence[str], layout: CacheLayout, sizes: Sequence[int], seed: int
) -> dict[str, Sequence[CopySample]]:
    draw = random.Random(seed)
    plan = [
        [
            transfer.Copy(way, blocks, draw.getrandbits(32), layout, scattered=False)
            for way in ways
            for blocks in draw.sample(sizes, len(sizes))
            for _ in range(max(1, 32 // blocks))
        ]
        for _ in range(1 + COPY_ROUNDS)
    ]
    times: dict[str, dict[int, list[float]]] = {way: {} for way in ways}
    for copies, seconds in list(zip(plan, transfer.run(plan), strict=True))[1:]:  # the first round warms up
        for copy, taken in zip(copies, seconds, strict=True):
            times[copy.way].setdefault(copy.size_bytes, []).append(taken)
    return {
        way: [CopySample(size, _calm(those)) for size, those in sorted(by_size.items())]
        for way, by_size in times.items()
    }


def _host_copies(runner: Runner, sizes: Sequence[int]) -> list[CopySample]:
    """Copies between the cache and host memory in one process, as a swap makes them."""
    cache, times = runner.cache, {blocks: [] for blocks in sizes}
    rooms = {blocks: torch.empty_like(cache.staging(blocks), device="cpu").zero_() for blocks in sizes}
    for turn in range(1 + COPY_ROUNDS):
        for blocks in sizes:
            start = (turn * blocks) % (cache.layout.blocks - blocks + 1)
            began = time.perf_counter()
            rooms[blocks].copy_(cache.gather(range(start, start + blocks)))
            times[blocks].append(time.perf_counter() - began)
    block_bytes = cache.layout.block_bytes
    return [CopySample(blocks * block_bytes, _calm(those[1:])) for blocks, those in times.items()]


def _calm(seconds: Sequence[float]) -> float:
    """The slowest of the fastest share."""
    return float(np.quantile(seconds, CALM))


def _fit_links(links: dict[str, Sequence[CopySample]], seed: int) -> tuple[dict[str, LinkCost], float]:
    """The cost of each link, and the median error of the sizes held out of all of them."""
    costs, errors = {}, []
    for name, samples in links.items():
        fitted, held = held_out(samples, 3, seed)
        costs[name] = fit_link(fitted)
        errors.extend(copy_errors(costs[name], held))
    return costs, float(np.median(errors))
