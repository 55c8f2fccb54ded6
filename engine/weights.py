"""Weights of a checkpoint, fused for the forward pass."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .checkpoint import ModelSpec, weight_files
from .families import Mixture

# Buffers that older checkpoints saved beside the weights.
_KINDS = ("F64", "F32", "F16", "BF16")
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")


@dataclass(frozen=True, slots=True)
class GatedWeights:
    """A dense feed-forward: gate above up in one matrix `[2 * intermediate, hidden]`."""

    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A mixture of experts."""

    router: torch.Tensor
    """[experts, hidden]"""
    gate_up: torch.Tensor
    """[experts, 2 * intermediate, hidden]"""
    down: torch.Tensor
    """[experts, hidden, intermediate]"""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Matrices are `[out, in]`; what a family lacks is None.

    Rows of queries and keys are reordered so that the two dimensions which rope turns together are neighbours.
    """

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norm: torch.Tensor | None
    """[heads + kv_heads, head_dim]"""
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor
    feed_forward: GatedWeights | ExpertWeights


@dataclass(frozen=True, slots=True)
class ModelWeights:
    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor


def load_weights(
    folder: Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    cut: Callable[[LayerWeights], LayerWeights] | None = None,
    head: bool = True,
) -> ModelWeights:
    """Reads the safetensors files of `folder` as `dtype` onto `device`.

    `cut` is what is kept of each layer, so that no more than one is ever held whole; without `head` the output
    projection is left out (the embedding stands there).
    Raises ValueError, naming the file or the tensor, where one is missing, damaged, unexpected or of another shape.
    """
    with ExitStack() as stack:
        shards = _Shards(weight_files(folder), dtype, device, stack)
        own_head = head and not spec.tied
        weights = _read_model(shards, spec, cut or (lambda layer: layer), own_head)
        shards.refuse_unread(ignored=() if own_head else ("lm_head.weight",))
    return weights


class _Shards:
    """All tensors of a checkpoint by name, each read once."""

    def __init__(
        self, files: Iterable[Path], dtype: torch.dtype, device: torch.device, stack: ExitStack
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._sources: dict[str, tuple[Path, Any]] = {}
        self._read: set[str] = set()
        for file in files:
            try:
                shard = stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise ValueError(f"{file} is no readable safetensors file: {error}") from None
            self._sources.update((name, (file, shard)) for name in shard.keys())

    def read(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self._sources:
            raise ValueError(f"the checkpoint lacks tensor {name} of shape {list(shape)}")
        file, shard = self._sources[name]
        tensor = shard.get_slice(name)
        found, kind = tensor.get_shape(), tensor.get_dtype()
        if kind not in _KINDS:
            raise ValueError(f"{file}: tensor {name} is {kind}; supported: {', '.join(_KINDS)}")
        if found != list(shape):
            raise ValueError(f"{file}: tensor {name} has shape {found}, expected {list(shape)}")
        self._read.add(name)
        return shard.get_tensor(name).to(device=self._device, dtype=self._dtype)

    def has(self, name: str) -> bool:
        return name in self._sources

    def refuse_unread(self, ignored: tuple[str, ...]) -> None:
        unread = self._sources.keys() - self._read - set(ignored)
        unexpected = sorted(name for name in unread if not name.endswith(_IGNORED_SUFFIXES))
        if unexpected:
            file, _ = self._sources[unexpected[0]]
            more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
            raise ValueError(f"{file}: unexpected tensor {unexpected[0]}{more}")


def _read_model(
    shards: _Shards, spec: ModelSpec, cut: Callable[[LayerWeights], LayerWeights], own_head: bool
) -> ModelWeights:
    embedding = shards.read("model.embed_tokens.weight", spec.vocab, spec.hidden)
    return ModelWeights(
        embedding=embedding,
        layers=tuple(cut(_read_layer(shards, spec, index)) for index in range(spec.layers)),
        norm=shards.read("model.norm.weight", spec.hidden),
        head=shards.read("lm_head.weight", spec.vocab, spec.hidden) if own_head else embedding,
    )


def _read_layer(shards: _Shards, spec: ModelSpec, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention = f"{prefix}.self_attn"
    mixture = spec.mixture if spec.mixture and spec.mixture.layers[index] else None
    heads_out = spec.heads * spec.head_dim
    return LayerWeights(
        input_norm=shards.read(f"{prefix}.input_layernorm.weight", spec.hidden),
        qkv=_read_qkv(shards, spec, attention, "weight", spec.hidden),
        qkv_bias=_read_qkv(shards, spec, attention, "bias") if spec.qkv_bias else None,
        qk_norm=_read_qk_norm(shards, spec, attention) if spec.qk_norm else None,
        output=shards.read(f"{attention}.o_proj.weight", spec.hidden, heads_out),
        output_bias=shards.read(f"{attention}.o_proj.bias", spec.hidden) if spec.output_bias else None,
        post_norm=shards.read(f"{prefix}.post_attention_layernorm.weight", spec.hidden),
        feed_forward=_read_experts(shards, spec, mixture, prefix)
        if mixture
        else _read_gated(shards, spec, f"{prefix}.mlp"),
    )


def _read_qkv(shards: _Shards, spec: ModelSpec, prefix: str, part: str, *columns: int) -> torch.Tensor:
    rows, kv_rows = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    q = shards.read(f"{prefix}.q_proj.{part}", rows, *columns)
    k = shards.read(f"{prefix}.k_proj.{part}", kv_rows, *columns)
    v = shards.read(f"{prefix}.v_proj.{part}", kv_rows, *columns)
    return torch.cat([_interleave(q, spec.head_dim), _interleave(k, spec.head_dim), v])


def _read_qk_norm(shards: _Shards, spec: ModelSpec, prefix: str) -> torch.Tensor:
    q, k = (
        _interleave(shards.read(f"{prefix}.{name}_norm.weight", spec.head_dim), spec.head_dim)
        for name in ("q", "k")
    )
    return torch.cat([q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)])


def _read_gated(shards: _Shards, spec: ModelSpec, prefix: str) -> GatedWeights:
    def gate_up(part: str, *columns: int) -> torch.Tensor:
        names = (f"{prefix}.{name}_proj.{part}" for name in ("gate", "up"))
        return torch.cat([shards.read(name, spec.intermediate, *columns) for name in names])

    return GatedWeights(
        gate_up=gate_up("weight", spec.hidden),
        gate_up_bias=gate_up("bias") if spec.mlp_bias else None,
        down=shards.read(f"{prefix}.down_proj.weight", spec.hidden, spec.intermediate),
        down_bias=shards.read(f"{prefix}.down_proj.bias", spec.hidden) if spec.mlp_bias else None,
    )


def _read_experts(shards: _Shards, spec: ModelSpec, mixture: Mixture, layer: str) -> ExpertWeights:
    """Published checkpoints hold each expert by itself; those saved as `transformers` holds them, all in one."""
    prefix, (gate, up, down) = _expert_names(spec.family, layer)
    experts, inner, hidden = mixture.experts, mixture.intermediate, spec.hidden
    fused = f"{layer}.mlp.experts"
    if shards.has(f"{fused}.gate_up_proj"):
        return ExpertWeights(
            router=shards.read(f"{layer}.mlp.gate.weight", experts, hidden),
            gate_up=shards.read(f"{fused}.gate_up_proj", experts, 2 * inner, hidden),
            down=shards.read(f"{fused}.down_proj", experts, hidden, inner),
        )

    def each(name: str, *shape: int) -> torch.Tensor:
        return torch.stack(
            [shards.read(f"{prefix}.experts.{e}.{name}.weight", *shape) for e in range(experts)]
        )

    return ExpertWeights(
        router=shards.read(f"{prefix}.gate.weight", experts, hidden),
        gate_up=torch.cat([each(gate, inner, hidden), each(up, inner, hidden)], dim=1),
        down=each(down, hidden, inner),
    )


def _expert_names(family: str, layer: str) -> tuple[str, tuple[str, str, str]]:
    """Where a layer's experts stand in published checkpoints, and what their gate, up and down are called."""
    if family == "mixtral":
        return f"{layer}.block_sparse_moe", ("w1", "w3", "w2")
    return f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj")


def _interleave(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Checkpoints pair dimension i of a head with i + D/2; afterwards pair i stands at 2i and 2i + 1."""
    pairs = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
