"""The parts of a decoder layer, as functions of weights and a step's inputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..kernels.attention import paged_decode_attention, paged_prefill_attention
from ..kernels.experts import expert_feed_forward
from ..kernels.linear import linear
from ..kernels.paged import PagedBatch
from ..kernels.rms_norm import rms_norm
from ..kernels.rope import apply_rope
from ..kernels.silu_mul import silu_mul
from ..kernels.store_kv import store_kv
from .checkpoint import ModelSpec
from .families import Mixture
from .weights import ExpertWeights, GatedWeights, LayerWeights


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A flattened batch of `n` tokens: first one for each decoding sequence, then the chunks."""

    tokens: torch.Tensor
    """[n] ids"""
    rotations: torch.Tensor
    """[n, head_dim / 2] complex"""
    slots: torch.Tensor
    """[n] where each token's KV goes"""
    decodes: Mapping[int | None, PagedBatch]
    """The decoding sequences as layers with each window see them."""
    chunks: Mapping[int | None, PagedBatch]


def attention(
    x: torch.Tensor,
    weights: LayerWeights,
    spec: ModelSpec,
    inputs: StepInputs,
    kv: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """Self-attention of `x` [n, hidden]; stores the new keys and values in the layer's cache `kv`."""
    rotated = spec.heads + spec.kv_heads
    qkv = linear(x, weights.qkv, weights.qkv_bias).view(len(x), -1, spec.head_dim)
    qk, v = qkv[:, :rotated], qkv[:, rotated:]
    if weights.qk_norm is not None:
        qk = rms_norm(qk, weights.qk_norm, spec.norm_eps)
    q, k = apply_rope(qk, inputs.rotations).split((spec.heads, spec.kv_heads), dim=1)
    store_kv(k, v, kv, inputs.slots)
    decodes, chunks = inputs.decodes[window], inputs.chunks[window]
    border = len(decodes.tables)
    outs = []
    if decodes.tables:
        outs.append(paged_decode_attention(q[:border], kv, decodes))
    if chunks.tables:
        outs.append(paged_prefill_attention(q[border:], k[border:], v[border:], kv, chunks))
    mixed = outs[0] if len(outs) == 1 else torch.cat(outs)
    return linear(mixed.reshape(len(x), -1), weights.output, weights.output_bias)


def feed_forward(x: torch.Tensor, weights: GatedWeights | ExpertWeights, spec: ModelSpec) -> torch.Tensor:
    """The feed-forward block of `x` [n, hidden], dense or a mixture of experts."""
    if isinstance(weights, ExpertWeights):
        assert spec.mixture is not None
        experts, shares = route(x, weights.router, spec.mixture)
        return expert_feed_forward(x, experts, shares, weights.gate_up, weights.down)
    gate_up = linear(x, weights.gate_up, weights.gate_up_bias)
    return linear(silu_mul(gate_up), weights.down, weights.down_bias)


def route(x: torch.Tensor, router: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token of `x` [n, hidden] and their shares, float32, both [n, per_token]."""
    shares, experts = linear(x, router).float().softmax(dim=-1).topk(mixture.per_token, dim=-1)
    if mixture.normalised:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return experts, shares
