"""Requests drawn at random, with the moves and the cancellation that each is to live through."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from ..handover.values import SamplingParams
from .held import CONSTRAINTS, Held

LONGEST_PROMPT = 1500
OUTPUT_TOKENS = (32, 512)
"""Fewest and most tokens of an output."""
MOVED_WITHIN = 0.8
"""Moves are asked for within this share of an output, so that there is time for them."""
CANCELLED_SHARE = 0.125
TEMPERATURE = 0.8
"""Of the requests that sample."""
SHAPED_SHARE = 0.4
"""Of the requests: they have other sampling parameters too."""
SEVERAL_SHARE = 0.15
"""Of the requests: they ask for more than one choice."""
MOST_CHOICES = 3
HELD_SHARE = 0.1
"""Of the requests, where the checkpoint has a tokenizer: their output is held to a constraint."""
FILTERS = {
    "top_p": (0.95, 0.8, 0.5),
    "top_k": (1, 5, 40, 200),
    "min_p": (0.02, 0.1),
}
"""Parameters and the values that they are drawn from, decimals that a 32-bit float gives back."""
PENALTIES = {
    "presence_penalty": (-0.5, 0.5, 1.5),
    "frequency_penalty": (-0.1, 0.25, 1.0),
    "repetition_penalty": (0.9, 1.1, 1.3),
}


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
    """The client leaves once its first choice has so many tokens; None where it stays."""
    shape: SamplingParams = SamplingParams()
    """What else shapes the tokens; `params` has all of it."""
    choices: int = 1
    held: Held | None = None
    """What the output is held to. Such a one may end before `max_tokens`."""

    def params(self, choice: int = 0) -> SamplingParams:
        """How the tokens of one choice are drawn."""
        return replace(
            self.shape,
            temperature=self.temperature,
            seed=self.seed,
            choice=choice,
            max_tokens=self.max_tokens,
            ignore_eos=self.held is None,
        )

    def moves_of(self, choice: int) -> tuple[int, ...]:
        """The choices share the moves."""
        return self.moves[choice :: self.choices]


def draw_trials(
    count: int,
    moves: int,
    seed: int,
    *,
    vocabulary: int,
    context_tokens: int,
    sampled_share: float = 0.0,
    text: bool = False,
) -> list[Trial]:
    """`count` trials of 0 to `moves` moves each, the same for the same arguments.

    `sampled_share` of them sample, the others are greedy. `text`: there is a tokenizer.
    """
    if context_tokens <= OUTPUT_TOKENS[0]:
        raise ValueError(f"the checkpoint's context of {context_tokens} tokens is too short to verify it")
    draw = random.Random(seed)
    trials = [
        _draw(draw, f"verify-{seed}-{number}", moves, vocabulary, context_tokens, sampled_share)
        for number in range(count)
    ]
    return [_hold(draw, trial) for trial in trials] if text else trials


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
    temperature = TEMPERATURE if draw.random() < sampled_share else 0.0
    return Trial(
        request_id=request_id,
        prompt=tuple(draw.randrange(vocabulary) for _ in range(length)),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=draw.getrandbits(64),
        moves=tuple(sorted(draw.randrange(early) for _ in range(draw.randint(0, moves)))),
        cancel_after=cancel_after,
        shape=_shape(draw, vocabulary, max_tokens) if draw.random() < SHAPED_SHARE else SamplingParams(),
        choices=draw.randint(2, MOST_CHOICES) if draw.random() < SEVERAL_SHARE else 1,
    )


def _hold(draw: random.Random, trial: Trial) -> Trial:
    """A share is held to a constraint, beside all else but what conflicts with one."""
    if draw.random() >= HELD_SHARE:
        return trial
    shape = replace(trial.shape, min_tokens=0, stop_token_ids=())
    return replace(trial, held=draw.choice(CONSTRAINTS), shape=shape)


def _shape(draw: random.Random, vocabulary: int, max_tokens: int) -> SamplingParams:
    """Some parameters, each alone or beside others."""
    known = FILTERS | PENALTIES
    fields: dict[str, Any] = {name: draw.choice(known[name]) for name in draw.sample(sorted(known), 2)}
    if draw.random() < 0.3:
        tokens = sorted(draw.sample(range(vocabulary), 4))
        fields["logit_bias"] = tuple((token, draw.choice((-100.0, -1.5, 2.25))) for token in tokens)
    if draw.random() < 0.3:
        fields["stop_token_ids"] = tuple(sorted(draw.sample(range(vocabulary), min(64, vocabulary // 8))))
        fields["min_tokens"] = draw.randint(0, max_tokens // 2)
    if draw.random() < 0.4:
        fields["logprobs"] = draw.choice((0, 3))
    if draw.random() < 0.2:
        fields["prompt_logprobs"] = draw.choice((0, 2))
    return SamplingParams(**fields)
