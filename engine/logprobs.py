"""Log-probabilities of tokens, from the model's own logits."""

from collections.abc import Sequence

import torch

from ..handover.values import Logprobs
from ..kernels.device import download


class LogprobsOf:
    """Of each row of `logits` [rows, vocab]: that of the row's token, and as many alternatives as `tops` says."""

    def __init__(self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int]) -> None:
        """`tokens` [rows], on the device of `logits`, which is not waited for."""
        self._tops = tops
        logits = logits.float()
        total = logits.logsumexp(dim=-1, keepdim=True)
        own = (logits.gather(1, tokens.unsqueeze(1)) - total).squeeze(1)
        likeliest, ids = logits.topk(min(max(tops), logits.shape[-1]), dim=-1)
        self._own, self._ids, self._likeliest = map(download, (own, ids, likeliest - total))

    def result(self) -> list[Logprobs]:
        """One a row; to be asked for once the device has done what it was given."""
        alternatives = zip(self._ids.tolist(), self._likeliest.tolist(), strict=True)
        return [
            Logprobs(mine, tuple(zip(ids[:top], values[:top], strict=True)))
            for mine, (ids, values), top in zip(self._own.tolist(), alternatives, self._tops, strict=True)
        ]
