"""What one step runs: running decodes first, then prompts in order of arrival, within the token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sequence that could run: how many of its tokens have no KV yet, and whether it is past its prompt."""

    pending_tokens: int
    decoding: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one step: prompt tokens, and sequences that decode. These numbers are the whole of a role."""

    prefill_tokens: int
    decode_slots: int


def choose_batch(candidates: Sequence[Candidate], budget: Budget) -> list[tuple[int, int]]:
    """What to run, as (place among the candidates, tokens).

    Prompts are cut to fill the prefill budget exactly, earlier ones first.
    """
    places = [place for place, candidate in enumerate(candidates) if candidate.decoding]
    batch = [(place, 1) for place in places[: budget.decode_slots]]
    left = budget.prefill_tokens
    for place, candidate in enumerate(candidates):
        if candidate.decoding or left == 0:
            continue
        tokens = min(candidate.pending_tokens, left)
        batch.append((place, tokens))
        left -= tokens
    return batch
