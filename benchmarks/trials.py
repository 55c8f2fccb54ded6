"""Requests drawn at random, with the moves and the cancellation that each is to live through."""

from __future__ import annotations

import random
from dataclasses import dataclass

LONGEST_PROMPT = 1500
OUTPUT_TOKENS = (32, 512)
"""Fewest and most tokens of an output."""
MOVED_WITHIN = 0.8
"""Moves are asked for within this share of an output, so that there is time for them."""
CANCELLED_SHARE = 0.125
TEMPERATURE = 0.8
"""Of the requests that sample."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One request and what is done to it."""

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    moves: tuple[int, ...]
    """Ascending indices of output tokens: when the client receives one, a move is asked for."""
    cancel_after: int | None
    """The client leaves once it has so many tokens; None where it stays."""


def draw_trials(
    count: int, moves: int, seed: int, *, vocabulary: int, context_tokens: int, sampled_share: float = 0.0
) -> list[Trial]:
    """`count` trials of 0 to `moves` moves each, the same for the same arguments.

    `sampled_share` of them sample, the others are greedy.
    """
    if context_tokens <= OUTPUT_TOKENS[0]:
        raise ValueError(f"the checkpoint's context of {context_tokens} tokens is too short to verify it")
    draw = random.Random(seed)
    return [
        _draw(draw, f"verify-{seed}-{number}", moves, vocabulary, context_tokens, sampled_share)
        for number in range(count)
    ]


def _draw(
    draw: random.Random,
    request_id: str,
    moves: int,
    vocabulary: int,
    context_tokens: int,
    sampled_share: float,
) -> Trial:
    max_tokens = draw.randint(OUTPUT_TOKENS[0], min(OUTPUT_TOKENS[1], context_tokens - 1))
    length = draw.randint(1, min(LONGEST_PROMPT, context_tokens - max_tokens))
    cancel_after = draw.randrange(1, max_tokens) if draw.random() < CANCELLED_SHARE else None
    early = max(1, int(MOVED_WITHIN * (cancel_after or max_tokens)))
    return Trial(
        request_id=request_id,
        prompt=tuple(draw.randrange(vocabulary) for _ in range(length)),
        max_tokens=max_tokens,
        temperature=TEMPERATURE if draw.random() < sampled_share else 0.0,
        seed=draw.getrandbits(64),
        moves=tuple(sorted(draw.randrange(early) for _ in range(draw.randint(0, moves)))),
        cancel_after=cancel_after,
    )
