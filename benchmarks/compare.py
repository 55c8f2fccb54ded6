"""Tokens beside the reference's logits: equal, a rounding tie, or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..engine.draw import draw_key
from ..engine.sampler import score
from ..handover.values import Logprobs, SamplingParams
from .plain import Asked, left, transformed

TIE = 1e-4
"""Two scores (logits, or logits with the noise of a draw) so close to each other may swap by rounding."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one stream. `ties + mismatched` of its `tokens` are not the reference's."""

    tokens: int
    ties: int
    mismatched: int
    """From the first wrong token on, all: what follows it has another past."""


def compare(
    tokens: Sequence[int], logits: torch.Tensor, temperature: float, seed: int, first: int = 0
) -> Comparison:
    """`compare_shaped`, where nothing shapes the logits; `first` is the index of the first token within the output."""
    asked = Asked(SamplingParams(temperature=temperature, seed=seed, ignore_eos=True))
    return compare_shaped([0] * first + [*tokens], logits, asked, first)


def compare_shaped(output: Sequence[int], logits: torch.Tensor, asked: Asked, first: int = 0) -> Comparison:
    """`output[first:]` beside `logits` [len(output) - first, vocabulary], each row computed after the tokens before it.

    Draws are keyed by the place within the output. After a tie the comparison goes on from the token given, since the
    next row was computed after that one. A tie is also what the filters leave or not by rounding. A token that should
    have been the last makes those after it wrong.
    """
    tokens, params = output[first:], asked.params
    assert logits.shape[0] == len(tokens)
    keys = [draw_key(params.seed, params.choice, first + i) for i in range(len(tokens))]
    given = torch.tensor(tokens)[:, None]
    logits = transformed(logits, asked, output, first)
    scores = score(logits, [params.temperature] * len(tokens), keys)
    least = torch.where(left(logits, params, -TIE), scores, -torch.inf).amax(-1, keepdim=True) - TIE
    right = left(logits, params, TIE).gather(1, given) & (scores.gather(1, given) >= least)
    own = torch.where(left(logits, params), scores, -torch.inf).argmax(-1, keepdim=True) == given
    until = _first(~right.squeeze(1))
    until = min(until, next((i + 1 for i, token in enumerate(tokens) if token in asked.stops), until))
    return Comparison(len(tokens), int((~own[:until]).sum()), len(tokens) - until)


def _first(wrong: torch.Tensor) -> int:
    """The first that holds, or their number."""
    places = wrong.nonzero().flatten().tolist()
    return places[0] if places else len(wrong)


def wrong_logprobs(
    told: Sequence[Logprobs], tokens: Sequence[int], logits: torch.Tensor, alternatives: int
) -> int:
    """How many of `told` are not those of the tokens by the reference's `logits`, one row a token; missing ones too."""
    expected = torch.log_softmax(logits.double(), dim=-1)
    wrong = abs(len(tokens) - len(told))
    return wrong + sum(
        not _same_logprobs(one, token, row, alternatives)
        for one, token, row in zip(told, tokens, expected, strict=False)
    )


def _same_logprobs(told: Logprobs, token: int, expected: torch.Tensor, alternatives: int) -> bool:
    """Where two are equally likely either may be the alternative."""
    pairs = [(told.own, expected[token]), *((value, expected[id]) for id, value in told.top)]
    likeliest = expected.topk(alternatives).values.tolist()
    pairs += [(value, best) for (_, value), best in zip(told.top, likeliest, strict=False)]
    return len(told.top) == alternatives and all(abs(value - float(own)) <= TIE for value, own in pairs)
