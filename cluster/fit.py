"""Fits the cost model to measured times: least squares of relative errors, no coefficient below zero.

The split of a law is the one whose held-out error is least. Errors are told for samples that no fit has seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from ..policy.cost import Law, LinkCost, Piece, StepCost, StepShape

T = TypeVar("T")

FOLDS = 5
FEWEST = 8
"""Samples of a piece: twice its coefficients."""
SPLITS = 12
"""Most places at which a law is tried to be split."""
WORTH = 0.03
"""Share of the held-out error that a split must save."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """A step that was measured."""

    shape: StepShape
    seconds: float


@dataclass(frozen=True, slots=True)
class CopySample:
    """A copy that was measured."""

    size_bytes: int
    seconds: float


def fit_steps(samples: Sequence[StepSample], seed: int = 0) -> StepCost:
    """The cost of steps with prompt tokens and of those without, each a law of its own; `seed` draws the folds.

    `ValueError` where either kind has too few samples.
    """
    kinds = {
        "with prompt tokens": [sample for sample in samples if sample.shape.chunk_tokens],
        "that only decode": [sample for sample in samples if not sample.shape.chunk_tokens],
    }
    for name, those in kinds.items():
        if len(those) < FEWEST:
            raise ValueError(f"{len(those)} steps {name} were measured; a fit needs at least {FEWEST}")
    prefill, decode = (_fit_law(those, seed) for those in kinds.values())
    return StepCost(prefill=prefill, decode=decode)


def fit_link(samples: Sequence[CopySample]) -> LinkCost:
    """The cost of copies over one link; `ValueError` without two sizes, or where more bytes take no more time."""
    if len({sample.size_bytes for sample in samples}) < 2:
        raise ValueError("a link's cost needs copies of at least two sizes")
    rows = np.array([(1.0, sample.size_bytes) for sample in samples])
    latency, per_byte = _least_squares(rows, np.array([sample.seconds for sample in samples]))
    if per_byte == 0:
        raise ValueError("copies of more bytes took no longer, so the link's bandwidth cannot be told")
    return LinkCost(latency_s=float(latency), bandwidth_bytes_per_s=float(1 / per_byte))


def step_errors(cost: StepCost, samples: Iterable[StepSample]) -> np.ndarray:
    """Relative errors |predicted - measured| / measured, one for each sample."""
    return np.array([abs(cost.predict(sample.shape) / sample.seconds - 1) for sample in samples])


def copy_errors(cost: LinkCost, samples: Iterable[CopySample]) -> np.ndarray:
    """Relative errors |predicted - measured| / measured, one for each sample."""
    return np.array([abs(cost.predict(sample.size_bytes) / sample.seconds - 1) for sample in samples])


def held_out(samples: Sequence[T], every: int, seed: int) -> tuple[list[T], list[T]]:
    """The samples to fit, and one in `every` of them, drawn at random, to tell the error by."""
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    kept = sorted(order[len(samples) // every :])
    return [samples[i] for i in kept], [samples[i] for i in sorted(order[: len(samples) // every])]


def _fit_law(samples: Sequence[StepSample], seed: int) -> Law:
    """The law whose split has the least mean held-out error over the folds; one piece unless two are clearly better."""
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    folds = [order[start::FOLDS] for start in range(FOLDS)]

    def error(split: int) -> float:
        found = []
        for fold in folds:
            rest = [samples[i] for i in order if i not in fold]
            law = _fit_pieces(rest, split)
            cost = StepCost(prefill=law, decode=law)
            found.extend(step_errors(cost, (samples[i] for i in fold)))
        return float(np.mean(found))

    errors = {split: error(split) for split in _splits(samples)}
    best = min(errors, key=lambda split: errors[split])
    return _fit_pieces(samples, best if errors[best] < (1 - WORTH) * errors[1] else 1)


def _splits(samples: Sequence[StepSample]) -> list[int]:
    """Numbers of tokens to try: 1, which is one piece for all, and quantiles that leave enough on both sides."""
    tokens = sorted({sample.shape.tokens for sample in samples})
    picks = {tokens[i * len(tokens) // SPLITS] for i in range(SPLITS)}
    return [1, *sorted(split for split in picks - {1} if _tells(samples, split))]


def _tells(samples: Sequence[StepSample], split: int) -> bool:
    """Whether both sides of a split have enough samples, of everything that any of them has."""
    rows = np.array([_row(sample.shape) for sample in samples])
    above = rows[:, 1] >= split
    # The folds take their share away before a piece is fitted.
    counts = [np.count_nonzero(rows[side], axis=0) * (FOLDS - 1) / FOLDS for side in (above, ~above)]
    return all((count[rows.any(axis=0)] >= FEWEST).all() for count in counts)


def _fit_pieces(samples: Sequence[StepSample], split: int) -> Law:
    above = [sample for sample in samples if sample.shape.tokens >= split]
    below = [sample for sample in samples if sample.shape.tokens < split]
    return Law(split_tokens=split, below=_fit_piece(below or above), above=_fit_piece(above))


def _fit_piece(samples: Sequence[StepSample]) -> Piece:
    rows = np.array([_row(sample.shape) for sample in samples])
    base, token, work, context = _least_squares(rows, np.array([sample.seconds for sample in samples]))
    return Piece(
        base_s=float(base),
        per_token_s=float(token),
        per_chunk_work_s=float(work),
        per_context_token_s=float(context),
    )


def _row(shape: StepShape) -> tuple[float, ...]:
    return 1.0, float(shape.tokens), float(shape.chunk_work), float(shape.context_tokens)


def _least_squares(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The coefficients, none below zero, of the least sum of squared relative errors.

    The best non-negative solution leaves some columns out and is the plain one in the rest; there are few columns, so
    every choice of them is tried.
    """
    weighted = rows / seconds[:, None]
    scale = np.abs(weighted).max(axis=0)
    columns = [int(column) for column in np.flatnonzero(scale)]
    best, least = np.zeros(rows.shape[1]), np.inf
    for size in range(len(columns), 0, -1):
        for chosen in combinations(columns, size):
            part = list(chosen)
            found = np.linalg.lstsq(weighted[:, part] / scale[part], np.ones(len(seconds)), rcond=None)[0]
            rest = float(np.sum((weighted[:, part] @ (found / scale[part]) - 1) ** 2))
            if (found >= 0).all() and rest < least:
                best, least = np.zeros(rows.shape[1]), rest
                best[part] = found / scale[part]
        if size == len(columns) and least < np.inf:
            break  # nothing is better than the plain solution in all columns
    return best
