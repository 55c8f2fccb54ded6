"""Tokens beside the reference's logits: equal, a rounding tie, or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..engine.draw import draw_key
from ..engine.sampler import score

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
    """`tokens` beside `logits` [len(tokens), vocabulary], each row computed after the tokens before it.

    `first` is the index of the first token within the output: draws are keyed by it. After a tie the comparison goes
    on from the token given, since the next row was computed after that one.
    """
    assert logits.shape[0] == len(tokens)
    keys = [draw_key(seed, 0, first + i) for i in range(len(tokens))]
    distance = _below_top(torch.tensor(tokens), score(logits, [temperature] * len(tokens), keys))
    wrong = (distance > TIE).nonzero().flatten().tolist()
    right = wrong[0] if wrong else len(tokens)
    ties = int((distance[:right] > 0).sum())
    return Comparison(len(tokens), ties, len(tokens) - right)


def _below_top(given: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """How far each token's score lies below the largest; 0 for the reference's own choice alone."""
    top, choice = scores.max(dim=-1)
    below = top - scores.gather(1, given[:, None]).squeeze(1)
    return torch.where(given == choice, 0.0, below.clamp(min=torch.finfo(torch.float64).tiny))
