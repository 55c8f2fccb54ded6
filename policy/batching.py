"""What one step runs: running decodes first, then prompts, within the token budget that the ITL target leaves.

Sarathi-Serve's stall-free batches and DeepSpeed-FastGen's Dynamic SplitFuse as one mechanism.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .cost import Law, Piece, StepCost, StepShape

LONGEST_CHUNK = 1 << 17
"""Tokens; no budget is larger."""


class Candidate(NamedTuple):
    """A sequence that could run: how many of its tokens have no KV yet, and whether it is past its prompt."""

    pending_tokens: int
    decoding: bool
    computed_tokens: int = 0
    """Those that have KV: the context of a decode, the prefix of a chunk."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one step: prompt tokens, and sequences that decode. These numbers are the whole of a role."""

    prefill_tokens: int
    decode_slots: int


@dataclass(frozen=True, slots=True)
class Target:
    """How long a step that has decodes may take by the cost model."""

    cost: StepCost
    itl_s: float


def choose_batch(candidates: Sequence[Candidate], budget: Budget) -> list[tuple[int, int]]:
    """What to run, as (place among the candidates, tokens).

    Decodes, then prompts that were begun, then new ones; each kind in the order given. Prompts are cut to fill the
    prefill budget exactly.
    """
    batch = [(place, 1) for place in _decodes(candidates, budget)]
    left = budget.prefill_tokens
    for place in _prompts(candidates):
        if left == 0:
            break
        tokens = min(candidates[place].pending_tokens, left)
        batch.append((place, tokens))
        left -= tokens
    return batch


def bounded(candidates: Sequence[Candidate], budget: Budget, target: Target, least_tokens: int = 0) -> Budget:
    """The same with no more prompt tokens than the step's decodes allow, if it is to meet the target.

    `least_tokens` of them may run where none would meet it, lest prompts wait for as long as anything decodes.
    A step without decodes disturbs nobody and is not cut. Every chunk is priced at the deepest prefix of the prompts
    that the budget reaches, so a step of several prompts meets the target too.
    """
    running = StepShape.of(
        contexts=[candidates[place].computed_tokens for place in _decodes(candidates, budget)]
    )
    if not running.decodes:
        return budget
    reached = choose_batch(candidates, replace(budget, decode_slots=0))
    if not reached:
        return budget
    prefix = max(candidates[place].computed_tokens for place, _ in reached)
    tokens = prefill_budget(target.cost, running, target.itl_s, budget.prefill_tokens, prefix)
    return replace(budget, prefill_tokens=max(tokens, min(least_tokens, budget.prefill_tokens)))


def prefill_budget(
    cost: StepCost, running: StepShape, target_s: float, most_tokens: int = LONGEST_CHUNK, prefix: int = 0
) -> int:
    """The most prompt tokens, up to `most_tokens`, beside the `running` decodes in a step predicted at `target_s`.

    The tokens are one chunk behind `prefix` cached ones. 0 where no chunk meets the target. Where the law falls at its
    split, fewer tokens than these may be predicted to take longer.
    """
    law = cost.prefill
    for chunks in reversed(_pieces(law, running.decodes, most_tokens)):
        seconds = _chunk_seconds(law.piece(running.decodes + chunks[0]), running, prefix)
        fitting = bisect_right(chunks, target_s, key=seconds)
        if fitting:
            return chunks[fitting - 1]
    return 0


def saturation_tokens(cost: StepCost, gain: float = 0.05, most_tokens: int = LONGEST_CHUNK) -> int:
    """The fewest prompt tokens in a step from which a longer one raises prefill throughput by no more than `gain`.

    DistServe's saturation length (Zhong et al., OSDI 2024, section 3.1): up to it prompts are batched together, from it
    on one fills the step. Throughput n / (a + b n + c n^2) rises up to n = sqrt(a / c).
    """

    def throughput(tokens: int) -> float:
        return tokens / cost.predict(StepShape.of([(tokens, 0)]))

    rising = [_rising(cost.prefill, tokens) for tokens in _pieces(cost.prefill, 0, most_tokens)]
    best = max(throughput(tokens[-1]) for tokens in rising)
    enough = best / (1 + gain)
    return next(
        tokens[bisect_left(tokens, enough, key=throughput)]
        for tokens in rising
        if throughput(tokens[-1]) >= enough
    )


def _decodes(candidates: Sequence[Candidate], budget: Budget) -> list[int]:
    places = [place for place, candidate in enumerate(candidates) if candidate.decoding]
    return places[: budget.decode_slots]


def _prompts(candidates: Sequence[Candidate]) -> list[int]:
    places = [place for place, candidate in enumerate(candidates) if not candidate.decoding]
    return sorted(places, key=lambda place: candidates[place].computed_tokens == 0)


def _pieces(law: Law, decodes: int, most_tokens: int) -> list[range]:
    """The chunk sizes from 1 to `most_tokens` that each piece of the law prices beside so many decodes."""
    border = min(max(law.split_tokens - decodes, 1), most_tokens + 1)
    return [chunks for chunks in (range(1, border), range(border, most_tokens + 1)) if chunks]


def _chunk_seconds(piece: Piece, running: StepShape, prefix: int) -> Callable[[int], float]:
    """The price of a step by the tokens of its one chunk; a closed form, for it is asked for in every step."""
    fixed_s = piece.predict(running)
    linear_s = piece.per_token_s + 2 * prefix * piece.per_chunk_work_s
    square_s = piece.per_chunk_work_s
    return lambda tokens: fixed_s + tokens * (linear_s + tokens * square_s)


def _rising(law: Law, chunks: range) -> range:
    """The part of a piece's `chunks` on which throughput does not fall; one chunk at least."""
    piece = law.piece(chunks[0])
    if not piece.per_chunk_work_s:
        return chunks
    square = min(piece.base_s / piece.per_chunk_work_s, LONGEST_CHUNK**2)
    peak = math.isqrt(int(square))
    peak += peak * (peak + 1) <= square  # of whole numbers the root may lie next to the best
    return chunks[: max(1, min(peak, chunks[-1]) - chunks[0] + 1)]
