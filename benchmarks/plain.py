"""Sampling parameters applied to the reference's logits, plainly and apart from the engine's own way."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..handover.values import SamplingParams


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request shapes its tokens."""

    params: SamplingParams
    prompt: tuple[int, ...] = ()
    ends: frozenset[int] = frozenset()
    """The model's end tokens."""
    masks: torch.Tensor | None = None
    """Where the output is held to a constraint: which tokens may come at each place, [len(output), vocab]."""

    @property
    def stops(self) -> frozenset[int]:
        """Tokens after which nothing comes."""
        return frozenset(self.params.stop_token_ids) | (frozenset() if self.params.ignore_eos else self.ends)


def transformed(logits: torch.Tensor, asked: Asked, output: Sequence[int], first: int) -> torch.Tensor:
    """`logits` [rows, vocab] as float64 after bias, penalties and barred ends; row i chooses `output[first + i]`."""
    logits = logits.double()
    changed = torch.stack([_transformed(row, asked, output[: first + i]) for i, row in enumerate(logits)])
    return changed if asked.masks is None else changed.masked_fill(~asked.masks[first:], -torch.inf)


def _transformed(row: torch.Tensor, asked: Asked, output: Sequence[int]) -> torch.Tensor:
    params, generated = asked.params, Counter(output)
    row = row.clone()
    for token, bias in params.logit_bias:
        row[token] += bias
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*asked.prompt, *output}))
        row[seen] *= torch.where(row[seen] > 0, 1 / params.repetition_penalty, params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        for token, times in generated.items():
            row[token] -= params.frequency_penalty * times + params.presence_penalty
    if len(output) < params.min_tokens:
        row[sorted(asked.stops)] = -torch.inf
    return row


def left(logits: torch.Tensor, params: SamplingParams, slack: float = 0.0) -> torch.Tensor:
    """Which tokens min_p, top_k and top_p leave of transformed `logits` [rows, vocab].

    With `slack` above 0 also those that a rounding of so much may leave; below 0 only those that it must leave.
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if params.temperature == 0:
        return kept
    likelihood = torch.softmax(logits / params.temperature, dim=-1)
    if params.min_p > 0:
        least = params.min_p * likelihood.amax(-1, keepdim=True)
        kept &= likelihood >= least * math.exp(-slack / params.temperature)
    if params.top_k > 0:
        kept &= _sum_above(torch.ones_like(logits), logits, slack) < params.top_k
    if params.top_p < 1:
        likelihood = likelihood * kept
        share = (params.top_p + slack) * likelihood.sum(-1, keepdim=True)
        kept &= _sum_above(likelihood, logits, slack) < share
    return kept


def _sum_above(amounts: torch.Tensor, logits: torch.Tensor, slack: float) -> torch.Tensor:
    """For each token the amounts of the other tokens whose logits are more than `slack` above its own."""
    ascending, order = logits.sort(dim=-1)
    below = torch.nn.functional.pad(amounts.gather(1, order).cumsum(-1), (1, 0))
    place = torch.searchsorted(ascending, logits + slack, right=True)
    above = below[:, -1:] - below.gather(1, place)
    return above - amounts if slack < 0 else above
