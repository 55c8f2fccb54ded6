"""What one rank of a tensor-parallel instance holds of each layer: some heads, and a part of every feed-forward.

Ranks multiply by rows of the first matrices and by columns of the second, so that their results sum to the layer's
(section 3 of https://arxiv.org/abs/1909.08053). Key-value heads fewer than ranks are held by several.
"""

from dataclasses import dataclass, replace

import torch

from .checkpoint import ModelSpec
from .weights import ExpertWeights, GatedWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class Cut:
    """The share of `rank` among `ranks` of the whole model `spec`."""

    spec: ModelSpec
    rank: int
    ranks: int

    def layer(self, whole: LayerWeights) -> LayerWeights:
        """Its own copy of its part, so that the whole layer can go."""
        heads = self._heads()
        return replace(
            whole,
            qkv=self._of_heads(whole.qkv, heads),
            qkv_bias=self._of_heads(whole.qkv_bias, heads),
            qk_norm=None if whole.qk_norm is None else whole.qk_norm[self._heads(values=False)],
            output=self._columns(whole.output),
            output_bias=self._once(whole.output_bias),
            feed_forward=self._feed_forward(whole.feed_forward),
        )

    def _feed_forward(self, whole: GatedWeights | ExpertWeights) -> GatedWeights | ExpertWeights:
        if isinstance(whole, ExpertWeights):
            return ExpertWeights(whole.router, self._halves(whole.gate_up, dim=1), self._columns(whole.down))
        return GatedWeights(
            gate_up=self._halves(whole.gate_up),
            gate_up_bias=None if whole.gate_up_bias is None else self._halves(whole.gate_up_bias),
            down=self._columns(whole.down),
            down_bias=self._once(whole.down_bias),
        )

    def _heads(self, values: bool = True) -> list[int]:
        """Indices of its heads among all queries, keys and, where asked for, values."""
        queries, keys = self.spec.heads, self.spec.kv_heads
        own = queries // self.ranks
        held = self.spec.cache_layout(1, 1, "float32").held_heads(self.rank, self.ranks)
        firsts = (queries, queries + keys) if values else (queries,)
        kv = [first + head for first in firsts for head in range(held.start, held.stop)]
        return [*range(self.rank * own, (self.rank + 1) * own), *kv]

    def _of_heads(self, rows: torch.Tensor | None, heads: list[int]) -> torch.Tensor | None:
        if rows is None:
            return None
        by_head = rows.view(-1, self.spec.head_dim, *rows.shape[1:])
        return by_head[heads].flatten(0, 1)

    def _halves(self, gate_up: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Its part of the gate above its part of up."""
        gate, up = gate_up.chunk(2, dim)
        return torch.cat([gate.chunk(self.ranks, dim)[self.rank], up.chunk(self.ranks, dim)[self.rank]], dim)

    def _columns(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.chunk(self.ranks, -1)[self.rank].contiguous()

    def _once(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """What must be added once is added by rank 0."""
        return bias if self.rank == 0 else None
