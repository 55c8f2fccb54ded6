"""Log-probabilities of tokens, from the model's own logits."""

from collections.abc import Sequence

import torch

from ..handover.values import Logprobs


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[Logprobs]:
    """Of each row of `logits` [rows, vocab]: that of the row's token, and as many alternatives as `tops` says."""
    logits = logits.float()
    total = logits.logsumexp(dim=-1, keepdim=True)
    own = logits.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)) - total
    most = min(max(tops), logits.shape[-1])
    likeliest, ids = logits.topk(most, dim=-1)
    alternatives = zip(ids.tolist(), (likeliest - total).tolist(), strict=True)
    return [
        Logprobs(mine, tuple(zip(ids[:top], values[:top], strict=True)))
        for mine, (ids, values), top in zip(own.squeeze(1).tolist(), alternatives, tops, strict=True)
    ]
