"""Requests drawn at random, with the moves and the cancellation that each is to live through."""

from __future__ import annotations

import math
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
STEM_TOKENS = (64, 768)
"""Fewest and most tokens of what many prompts begin with."""
SHARED_SHARE = 0.5
"""Of the requests: their prompts begin alike, for a length that is drawn."""
REPEATED_SHARE = 0.15
"""Of the requests: they repeat an earlier one's prompt."""
TENANT_SHARE = 0.25
"""Of the requests: they come from another tenant, whose prompts may be others' and whose KV may not."""
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
    tenant: str = ""

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

    `sampled_share` of them sample, the others are greedy. `text`: there is a tokenizer. Of every kind there is one at
    least, but that few are cancelled where there are few.
    """
    if context_tokens <= OUTPUT_TOKENS[0]:
        raise ValueError(f"the checkpoint's context of {context_tokens} tokens is too short to verify it")
    draw = random.Random(seed)
    bounds = _Bounds(moves, vocabulary, context_tokens, _tokens(draw, draw.randint(*STEM_TOKENS), vocabulary))
    sampled = _some(draw, range(count), sampled_share)
    shaped = _some(draw, range(count), SHAPED_SHARE)
    held = _some(draw, range(count), HELD_SHARE) if text else []
    whole = [number for number in range(count) if number not in held]
    cancelled = draw.sample(whole, min(len(whole), round(CANCELLED_SHARE * count)))
    several = _some(draw, range(count), SEVERAL_SHARE)
    shared = _some(draw, range(count), SHARED_SHARE)
    repeated = _some(draw, range(1, count), REPEATED_SHARE)
    foreign = _some(draw, range(1, count), TENANT_SHARE)
    trials: list[Trial] = []
    for number in range(count):
        trials.append(
            _draw(
                draw,
                f"verify-{seed}-{number}",
                bounds,
                temperature=TEMPERATURE if number in sampled else 0.0,
                shaped=shaped.index(number) if number in shaped else None,
                held=CONSTRAINTS[(seed + held.index(number)) % len(CONSTRAINTS)] if number in held else None,
                cancelled=number in cancelled,
                choices=draw.randint(2, MOST_CHOICES) if number in several else 1,
                shared=number in shared,
                again=draw.choice(trials).prompt if number in repeated else (),
                tenant="another" if number in foreign else "",
            )
        )
    return trials


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What holds for all trials of a draw."""

    moves: int
    vocabulary: int
    context_tokens: int
    stem: tuple[int, ...]
    """What prompts that are shared begin with."""


def _some(draw: random.Random, numbers: range, share: float) -> list[int]:
    """A share of them, rounded up."""
    return draw.sample(numbers, math.ceil(share * len(numbers)))


def _tokens(draw: random.Random, count: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(draw.randrange(vocabulary) for _ in range(count))


def _draw(
    draw: random.Random,
    request_id: str,
    bounds: _Bounds,
    *,
    temperature: float,
    shaped: int | None,
    held: Held | None,
    cancelled: bool,
    choices: int,
    shared: bool,
    again: tuple[int, ...],
    tenant: str,
) -> Trial:
    """An output that is `held` is the longest, for only one that comes to its end shows whether it satisfies."""
    longest = min(OUTPUT_TOKENS[1], bounds.context_tokens - 1)
    max_tokens = longest if held else draw.randint(OUTPUT_TOKENS[0], longest)
    most = min(LONGEST_PROMPT, bounds.context_tokens - max_tokens)
    prompt = _tokens(draw, draw.randint(1, most), bounds.vocabulary)
    if shared:
        prompt = (*bounds.stem[: draw.randint(1, len(bounds.stem))], *prompt)[:most]
    cancel_after = draw.randrange(1, max_tokens) if cancelled else None
    early = max(1, int(MOVED_WITHIN * (cancel_after or max_tokens)))
    shape = SamplingParams() if shaped is None else _shape(draw, bounds.vocabulary, max_tokens, shaped)
    return Trial(
        request_id=request_id,
        prompt=again if 0 < len(again) <= most else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=draw.getrandbits(64),
        moves=tuple(sorted(draw.randrange(early) for _ in range(draw.randint(0, bounds.moves)))),
        cancel_after=cancel_after,
        shape=replace(shape, min_tokens=0, stop_token_ids=()) if held else shape,
        choices=choices,
        held=held,
        tenant=tenant,
    )


def _shape(draw: random.Random, vocabulary: int, max_tokens: int, number: int) -> SamplingParams:
    """Some parameters, each alone or beside others.

    Log-probabilities for each second `number`, those of the prompt for each third.
    """
    known = FILTERS | PENALTIES
    fields: dict[str, Any] = {name: draw.choice(known[name]) for name in draw.sample(sorted(known), 2)}
    if draw.random() < 0.3:
        tokens = sorted(draw.sample(range(vocabulary), 4))
        fields["logit_bias"] = tuple((token, draw.choice((-100.0, -1.5, 2.25))) for token in tokens)
    if draw.random() < 0.3:
        fields["stop_token_ids"] = tuple(sorted(draw.sample(range(vocabulary), min(64, vocabulary // 8))))
        fields["min_tokens"] = draw.randint(0, max_tokens // 2)
    if number % 2 == 0:
        fields["logprobs"] = draw.choice((0, 3))
    if number % 3 == 0:
        fields["prompt_logprobs"] = draw.choice((0, 2))
    return SamplingParams(**fields)
