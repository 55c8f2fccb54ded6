"""The forward pass of a decoder, one for all families."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..kernels.linear import linear
from ..kernels.rms_norm import add_rms_norm, rms_norm
from .cache import KVCache
from .checkpoint import ModelSpec
from .layers import StepInputs, attention, feed_forward
from .weights import ModelWeights

Reduce = Callable[[torch.Tensor], torch.Tensor]
Meanwhile = Callable[[], None]
"""Called now and then while a step is under way."""


class Model:
    """A decoder over a paged KV cache; it keeps no state between steps."""

    def __init__(self, spec: ModelSpec, weights: ModelWeights, reduce: Reduce | None = None) -> None:
        """Where `spec` and `weights` are a share of the model, `reduce` sums a tensor over all shares, in place."""
        self.spec = spec
        self.weights = weights
        self._reduce = reduce or (lambda x: x)

    def forward(
        self, inputs: StepInputs, cache: KVCache, meanwhile: Meanwhile = lambda: None
    ) -> torch.Tensor:
        """Feeds `inputs`, stores their keys and values, and returns the last layer's output [n, hidden]."""
        hidden = F.embedding(inputs.tokens, self.weights.embedding)
        update, eps = None, self.spec.norm_eps
        for layer, kv, window in zip(self.weights.layers, cache.layers, self.spec.windows, strict=True):
            hidden, normed = add_rms_norm(hidden, update, layer.input_norm, eps)
            update = self._reduce(attention(normed, layer, self.spec, inputs, kv, window))
            meanwhile()
            hidden, normed = add_rms_norm(hidden, update, layer.post_norm, eps)
            update = self._reduce(feed_forward(normed, layer.feed_forward, self.spec))
            meanwhile()
        return hidden if update is None else hidden + update

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits [rows, vocab] of some rows of `forward`'s output."""
        return linear(rms_norm(hidden, self.weights.norm, self.spec.norm_eps), self.weights.head)
