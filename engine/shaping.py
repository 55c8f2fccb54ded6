"""What sampling parameters do to logits, for all rows of a step at once.

Each row's result is a function of its own logits and `Shaping` alone. The order is vLLM's: barred tokens and bias, then
penalties (these count for greedy choice too), then, at the request's temperature, min_p, top_k and top_p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..handover.values import SamplingParams
from ..kernels.device import on_gpu, upload
from .step import SampleSpec, Shaping


def shape_(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> None:
    """Bars, biases and penalizes tokens of `logits` [rows, vocab], in place.

    Bias: added to the token's logit (OpenAI, `logit_bias`). Presence and frequency: logit - frequency x times generated
    - presence where generated at all (OpenAI's formula). Repetition, for tokens of prompt and output: positive logits
    are divided by it, others multiplied (Keskar et al., https://arxiv.org/abs/1909.05858, as in Hugging Face's
    RepetitionPenaltyLogitsProcessor). Where both apply, repetition comes first.
    """
    shaped = [(row, spec.shaping) for row, spec in enumerate(specs) if spec.shaping is not None]
    _bias_(logits, [(row, shaping) for row, shaping in shaped if shaping.params.logit_bias])
    _penalize_(logits, [(row, shaping) for row, shaping in shaped if shaping.tally is not None])
    _bar_(logits, [(row, shaping) for row, shaping in shaped if shaping.barred])
    _allow_(logits, [(row, shaping.allowed) for row, shaping in shaped if shaping.allowed is not None])


def _bias_(logits: torch.Tensor, rows: list[tuple[int, Shaping]]) -> None:
    if rows:
        entries = [(row, token, bias) for row, shaping in rows for token, bias in shaping.params.logit_bias]
        at, tokens, biases = (
            upload(np.array(column), logits.device) for column in zip(*entries, strict=True)
        )
        logits[at, tokens] += biases.to(logits.dtype)


def _penalize_(logits: torch.Tensor, rows: list[tuple[int, Shaping]]) -> None:
    if not rows:
        return
    tallies = [(row, shaping.params, shaping.tally) for row, shaping in rows if shaping.tally is not None]
    lengths = [len(tally) for _, _, tally in tallies]

    def spread(values: Sequence[float]) -> torch.Tensor:
        """One value a row to one an entry."""
        return upload(np.repeat(np.array(values), lengths), logits.device)

    at = spread([row for row, _, _ in tallies])
    tokens = upload(np.concatenate([tally.ids for _, _, tally in tallies]), logits.device)
    counts = upload(np.concatenate([tally.counts for _, _, tally in tallies]), logits.device)
    repetition = spread([params.repetition_penalty for _, params, _ in tallies])
    frequency = spread([params.frequency_penalty for _, params, _ in tallies])
    presence = spread([params.presence_penalty for _, params, _ in tallies])
    known = logits[at, tokens].double()
    known = torch.where(known > 0, known / repetition, known * repetition)
    known -= frequency * counts + presence * (counts > 0)
    logits[at, tokens] = known.to(logits.dtype)


def _bar_(logits: torch.Tensor, rows: list[tuple[int, Shaping]]) -> None:
    if rows:
        entries = [(row, token) for row, shaping in rows for token in shaping.barred]
        at, tokens = (upload(np.array(column), logits.device) for column in zip(*entries, strict=True))
        logits.index_put_((at, tokens), logits.new_full((), -torch.inf))


def _allow_(logits: torch.Tensor, rows: list[tuple[int, bytes]]) -> None:
    """Leaves the tokens whose bit is set; one beyond the mask has none."""
    if not rows:
        return
    masks = np.zeros((len(rows), logits.shape[-1]), dtype=np.uint8)
    for mask, (_, allowed) in zip(masks, rows, strict=True):
        bits = np.unpackbits(np.frombuffer(allowed, np.uint8), bitorder="little")[: len(mask)]
        mask[: len(bits)] = bits
    at = upload(np.array([row for row, _ in rows]), logits.device)
    forbidden = upload(masks, logits.device) == 0
    logits.index_copy_(0, at, logits.index_select(0, at).masked_fill_(forbidden, -torch.inf))


def best(scores: torch.Tensor, logits: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """For each row the token of the largest of `scores` among those that min_p, top_k and top_p leave; [rows].

    `logits` [rows, vocab] were shaped. Probabilities are those at the request's temperature, which is above 0.
    min_p keeps the tokens at least min_p times as likely as the likeliest (Nguyen et al.,
    https://arxiv.org/abs/2407.01082); top_k keeps the k most likely of these, and the equals of the last one (Fan et
    al., https://arxiv.org/abs/1805.04833); top_p keeps the fewest of these that have that share of what is left, and
    the equals of the last one (Holtzman et al., https://arxiv.org/abs/1904.09751).
    """
    chosen = scores.argmax(dim=-1)
    rows = [
        row for row, spec in enumerate(specs) if spec.shaping is not None and _filters(spec.shaping.params)
    ]
    if rows:
        params = [shaping.params for row in rows if (shaping := specs[row].shaping) is not None]
        at = upload(np.array(rows), logits.device)
        filtered = _best_of_filtered(scores.index_select(0, at), logits.index_select(0, at).float(), params)
        chosen.index_copy_(0, at, filtered)
    return chosen


def _filters(params: SamplingParams) -> bool:
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0


def _best_of_filtered(
    scores: torch.Tensor, logits: torch.Tensor, params: Sequence[SamplingParams]
) -> torch.Tensor:
    values = logits.double()
    temperatures = _column([p.temperature for p in params], values)
    top = values.amax(dim=-1, keepdim=True)
    floor = top + temperatures * _column([p.min_p for p in params], values).log()
    floor = torch.maximum(floor, _least_of_top(values, [p.top_k for p in params]))
    out = values < floor
    scores = scores.masked_fill(out, -torch.inf)
    likelihood = ((values - top) / temperatures).exp_().masked_fill_(out, 0.0)
    share = _column([p.top_p if p.top_p < 1 else torch.inf for p in params], values)
    share *= likelihood.sum(dim=-1, keepdim=True)
    within = best_by_sorting if on_gpu(logits) else best_by_pivots
    return within(scores, logits, likelihood, share)


def best_by_pivots(
    scores: torch.Tensor, logits: torch.Tensor, likelihood: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """For each row the best of `scores` whose likelier tokens have less than `share` [rows, 1] of `likelihood`.

    Without sorting: a candidate is outside the nucleus where those above it have its whole share already. Then so are
    all below it; the best of those above is the next candidate. (Rejection by pivots, as in FlashInfer's sampling
    kernels, here with fixed scores, so that the result is the one that sorting first would give.)
    """
    while True:
        chosen = scores.argmax(dim=-1, keepdim=True)
        pivot = logits.gather(1, chosen)
        outside = (likelihood * (logits > pivot)).sum(dim=-1, keepdim=True) >= share
        if not outside.any():
            return chosen.squeeze(1)
        scores.masked_fill_(outside & (logits <= pivot), -torch.inf)


def best_by_sorting(
    scores: torch.Tensor, logits: torch.Tensor, likelihood: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Twin of `best_by_pivots` that never asks the device how far it is: a step on a GPU is not waited for."""
    falling, order = logits.sort(dim=-1, descending=True)
    likelihood = likelihood.gather(1, order)
    above = likelihood.cumsum(dim=-1) - likelihood
    least = falling.masked_fill(above >= share, torch.inf).amin(dim=-1, keepdim=True)
    return scores.masked_fill(logits < least, -torch.inf).argmax(dim=-1)


def _least_of_top(logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The k-th largest of each row, [rows, 1]; -inf where k is 0."""
    most = min(max(counts), logits.shape[-1])
    if most == 0:
        return torch.full((logits.shape[0], 1), -torch.inf, device=logits.device)
    largest = logits.topk(most, dim=-1).values
    least = largest.gather(1, _column([min(k or 1, most) - 1 for k in counts], logits).long())
    return least.masked_fill_(_column(counts, logits) == 0, -torch.inf)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return upload(np.array(values, dtype=np.float64), like.device).unsqueeze(1)
