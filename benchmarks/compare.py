"""Tokens beside the reference's logits: equal, a rounding tie, or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..engine.draw import uniform

TIE = 1e-4
"""Two logits, or a draw and the boundary of a token, so close to each other may swap by rounding."""


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
    """`tokens` beside `logits` [len(tokens), vocabulary], each row computed after the tokens before it.

    `first` is the index of the first token within the output: draws are keyed by it. After a tie the comparison goes
    on from the token given, since the next row was computed after that one.
    """
    assert logits.shape[0] == len(tokens)
    given = torch.tensor(tokens)
    if temperature:
        distance = _beyond_draw(given, logits, temperature, seed, first)
    else:
        distance = _below_top(given, logits)
    wrong = (distance > TIE).nonzero().flatten().tolist()
    right = wrong[0] if wrong else len(tokens)
    ties = int((distance[:right] > 0).sum())
    return Comparison(len(tokens), ties, len(tokens) - right)


def _below_top(given: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """How far each token's logit lies below the largest; 0 for the reference's own choice alone."""
    top, choice = logits.double().max(dim=-1)
    below = top - logits.double().gather(1, given[:, None]).squeeze(1)
    return torch.where(given == choice, 0.0, below.clamp(min=torch.finfo(torch.float64).tiny))


def _beyond_draw(
    given: torch.Tensor, logits: torch.Tensor, temperature: float, seed: int, first: int
) -> torch.Tensor:
    """How far each draw lies outside the token's share of [0, 1); 0 where it lies within."""
    draws = torch.tensor(
        [uniform(seed, 0, first + i) for i in range(len(given))], dtype=torch.float64
    ).unsqueeze(1)
    ends = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    ends = ends / ends[:, -1:]
    choice = (ends <= draws).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], dim=-1)
    start, end = (bound.gather(1, given[:, None]) for bound in (starts, ends))
    beyond = torch.maximum(start - draws, draws - end).squeeze(1)
    return torch.where(given == choice, 0.0, beyond.clamp(min=torch.finfo(torch.float64).tiny))
