"""One instance with nobody around it: the shipped engine's rounds, one after the other in the caller's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..decode_worker.phase import DecodePhase
from ..engine.build import build_engine
from ..engine.config import EngineConfig
from ..engine.model import Model
from ..engine.runner import Runner
from ..handover.config import HandoverConfig
from ..handover.effects import FromRouter
from ..handover.frames import InstanceFrame, Step
from ..handover.values import (
    Address,
    Context,
    Epoch,
    Incarnation,
    PeerMessage,
    SamplingParams,
    Seen,
    Start,
)
from ..policy.batching import Budget
from ..prefill_worker.phase import PrefillPhase

ROUTER = "bench"


@dataclass(frozen=True, slots=True)
class Job:
    """Greedy, and to its full length."""

    prompt: tuple[int, ...]
    tokens: int
    """Of output."""


@dataclass
class Router:
    """What the engine asks of its surroundings; answers its news at once, as a router does, and moves nothing."""

    answer: Callable[[str, Seen], None]
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def send(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        assert not to_peers
        for _, frame in to_routers:
            for news in frame.news if isinstance(frame, Step) else ():
                output = self.outputs[news.session]
                assert news.first_index <= len(output), "no token is left out"
                output[news.first_index :] = [record.id for record in news.records]
                if news.records:
                    self.answer(news.session, Seen(news.session, news.epoch.attempt, len(output)))

    def reaches(self, destination: Address) -> bool:
        return False

    def _unused(self, *_: Any, **__: Any) -> None:
        raise AssertionError("nobody is there to move anything to")

    condemn = give_up = write_in_place = send_blocks = receive_blocks = decline_blocks = close_receive = (
        swap
    ) = _unused


class Alone:
    """An instance to which jobs are given all at once."""

    def __init__(self, config: EngineConfig, role: Budget, runner: Runner | None = None):
        """`runner` is of `config`. ValueError for a checkpoint that cannot be served."""
        self.runner = runner or Runner(config)
        self._router = Router(lambda session, seen: self._engine.post(session, FromRouter(ROUTER, seen)))
        self._engine = build_engine(
            Incarnation("alone", 1),
            *(self.runner, role, (PrefillPhase(), DecodePhase()), self._router),
            *(config, HandoverConfig()),
        )
        self._count = 0

    def begin(self, jobs: Sequence[Job]) -> list[str]:
        """Queue the jobs; the names of their sessions."""
        sessions = []
        for job in jobs:
            self._count += 1
            session = f"{ROUTER}-{self._count}"
            params = SamplingParams(max_tokens=job.tokens, ignore_eos=True)
            self.start(session, Context(job.prompt, params=params))
            sessions.append(session)
        self.round()  # nothing runs yet: they are taken
        return sessions

    def start(self, session: str, context: Context) -> None:
        """Queue a new session."""
        self._router.outputs[session] = []
        self.post(session, FromRouter(ROUTER, Start(session, Epoch(1, 1), context)))

    def post(self, session: str, event: FromRouter) -> None:
        """What the router says."""
        self._engine.post(session, event)

    @property
    def preemptions(self) -> int:
        """How often a sequence gave its memory back."""
        return self._engine.load.preemptions

    def round(self) -> bool:
        """One step and all around it; whether there was one to run."""
        self._engine.round(wait=False)
        return self._engine.stepping

    def run(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The outputs of the jobs, run together."""
        sessions = self.begin(jobs)
        while self.round():
            pass
        return [self.outputs(session) for session in sessions]

    def outputs(self, session: str) -> list[int]:
        return self._router.outputs[session]

    @property
    def idle(self) -> bool:
        """Nothing is held."""
        load = self._engine.load
        return load.free_blocks + load.cached_blocks == load.total_blocks and not load.running + load.waiting


@contextmanager
def model_seconds(clock: Callable[[], float] = time.perf_counter) -> Iterator[list[float]]:
    """The time of each call of the model's forward pass (its logits count too) while this lasts."""
    plain = {name: getattr(Model, name) for name in ("forward", "logits")}
    spent: list[float] = []

    def timed(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: Any) -> torch.Tensor:
            began = clock()
            out = function(*arguments)
            if out.is_cuda:
                torch.cuda.synchronize(out.device)
            spent.append(clock() - began)
            return out

        return call

    for name, function in plain.items():
        setattr(Model, name, timed(function))
    try:
        yield spent
    finally:
        for name, function in plain.items():
            setattr(Model, name, function)
