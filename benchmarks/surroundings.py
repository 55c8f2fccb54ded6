"""What a round of the shipped engine spends around its runner: scheduler, seats, news; by the sequences of its step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.config import EngineConfig
from ..engine.flight import Flight
from ..engine.model import Meanwhile
from ..engine.runner import Runner
from ..engine.step import StepItem
from ..policy.batching import Budget
from .alone import Alone, Job

BATCHES = (1, 8, 32, 64)
ROUNDS = 12
PROMPT = 16


@dataclass(frozen=True, slots=True)
class Surroundings:
    base_s: float
    per_sequence_s: float

    def predict(self, sequences: int) -> float:
        return self.base_s + self.per_sequence_s * sequences


def fit(samples: Sequence[tuple[int, float]]) -> Surroundings:
    """From (sequences, seconds); neither coefficient is below zero."""
    counts, seconds = np.array(samples, dtype=float).T
    slope, base = np.polyfit(counts, seconds, 1)
    return Surroundings(max(0.0, float(base)), max(0.0, float(slope)))


def measure(config: EngineConfig, runner: Runner) -> Surroundings:
    """Rounds of decodes at several batches, less what they spend in the runner, in CPU time of the engine's thread."""
    alone = Alone(config, Budget(max(BATCHES) * PROMPT, max(BATCHES)), runner)
    launch, spent = runner.launch, [0.0]

    def timed(
        items: Sequence[StepItem], after: Flight | None = None, meanwhile: Meanwhile = lambda: None
    ) -> Flight:
        began = time.thread_time()
        flight = launch(items, after, meanwhile)
        flight.result()
        spent[0] += time.thread_time() - began
        return flight

    runner.launch = timed
    try:
        return fit([(batch, _around(alone, batch, spent)) for batch in BATCHES])
    finally:
        runner.launch = launch


def _around(alone: Alone, batch: int, spent: list[float]) -> float:
    sessions = alone.begin([Job(tuple(range(1, PROMPT + 1)), 3 * ROUNDS)] * batch)
    while not all(alone.outputs(session) for session in sessions) and alone.round():
        pass
    times = []
    for _ in range(ROUNDS):
        spent[0], began = 0.0, time.thread_time()
        alone.round()
        times.append(time.thread_time() - began - spent[0])
    while alone.round():
        pass
    return statistics.median(times)
