"""The families of decoders that can be served, and what their config.json says. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .rope import read_rope

# What `transformers` assumes where config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "eos_token_id": 2},
    "mistral": {
        "max_position_embeddings": 131072,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "head_dim": 128,
    },
    "mixtral": {
        "max_position_embeddings": 131072,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
    },
}
FAMILIES = tuple(_DEFAULTS)
_QWEN3_MOE_EXPERTS = 128
_KINDS = ("full_attention", "sliding_attention")
_SILU = ("silu", "swish")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The mixture-of-experts layers of a model."""

    experts: int
    per_token: int
    """Experts that a token goes through."""
    intermediate: int
    """Of one expert."""
    normalised: bool
    """The shares of a token's experts sum to 1."""
    layers: tuple[bool, ...]
    """For each layer whether its feed-forward is a mixture."""


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what its family assumes where it is silent; ValueError for a family that is not supported."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model family {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    return {**_DEFAULTS[family], **config}


def read_architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelSpec` that a config, completed by `with_defaults`, decides.

    Raises ValueError, naming the field, for what cannot be served exactly.
    """
    family = config["model_type"]
    _refuse_unserved(config)
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    kv_heads = _count(config, "num_key_value_heads", heads)
    head_dim = _count(config, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise ValueError(
            f"config.json: {heads} attention heads are no multiple of {kv_heads} key-value heads"
        )
    if head_dim % 2:
        raise ValueError(f"config.json: head_dim must be even, got {head_dim}")
    layers = _count(config, "num_hidden_layers")
    max_positions = _count(config, "max_position_embeddings")
    attention_bias = family in ("llama", "qwen3", "qwen3_moe") and bool(config.get("attention_bias", False))
    return {
        "family": family,
        "vocab": _count(config, "vocab_size"),
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": _count(config, "intermediate_size"),
        "max_positions": max_positions,
        "norm_eps": _positive(config, "rms_norm_eps", 1e-6),
        "rope": read_rope(config, max_positions),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": attention_bias or family == "qwen2",
        "output_bias": attention_bias,
        "mlp_bias": family == "llama" and bool(config.get("mlp_bias", False)),
        "qk_norm": family in ("qwen3", "qwen3_moe"),
        "windows": _windows(family, config, layers),
        "mixture": _mixture(family, config, layers),
    }


def _refuse_unserved(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise ValueError("config.json: quantized checkpoints are not supported")
    if config.get("hidden_act", "silu") not in _SILU:
        raise ValueError(
            f"config.json: hidden_act {config['hidden_act']!r} is not supported; supported: {', '.join(_SILU)}"
        )


def _windows(family: str, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Which layers see a window only, as each family's attention in `transformers` has it.

    Mistral and Mixtral window every layer and Qwen3-MoE does where `use_sliding_window` says so; Qwen2 and Qwen3 then
    window those that `layer_types` names, else those from `max_window_layers` on. Llama knows no window.
    """
    window = config.get("sliding_window")
    if family in ("qwen2", "qwen3", "qwen3_moe") and not config.get("use_sliding_window", False):
        window = None
    kinds = _layer_kinds(family, config, layers, windowed=window is not None)
    if family == "llama" or window is None:
        return (None,) * layers
    window = _count(config, "sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _layer_kinds(family: str, config: Mapping[str, Any], layers: int, windowed: bool) -> list[str]:
    """The kind of each layer; ValueError for `layer_types` that the family's model would not follow."""
    given = config.get("layer_types")
    if family not in ("qwen2", "qwen3"):
        kinds = ["sliding_attention" if windowed and family != "llama" else "full_attention"] * layers
        if given not in (None, kinds):
            raise ValueError(
                f"config.json: layer_types of {family} are not supported unless all are {kinds[0]} here"
            )
        return kinds
    if given is None:
        first = config.get("max_window_layers", 28)
        return ["sliding_attention" if windowed and i >= first else "full_attention" for i in range(layers)]
    if not isinstance(given, list) or len(given) != layers or not set(given) <= set(_KINDS):
        raise ValueError(
            f"config.json: layer_types must name full_attention or sliding_attention for each of {layers} layers"
        )
    if "sliding_attention" in given and not windowed:
        raise ValueError(
            "config.json: layer_types names sliding_attention, but use_sliding_window and sliding_window do not"
        )
    return given


def _mixture(family: str, config: Mapping[str, Any], layers: int) -> Mixture | None:
    """Mixtral's layers are all mixtures; of Qwen3-MoE's every `decoder_sparse_step`-th, but `mlp_only_layers`."""
    if family == "mixtral":
        experts, intermediate = _count(config, "num_local_experts"), _count(config, "intermediate_size")
        sparse, normalised = (True,) * layers, True
    elif family == "qwen3_moe":
        # `transformers` 5 writes num_local_experts, published checkpoints have num_experts.
        experts = _count(config, "num_local_experts", _count(config, "num_experts", _QWEN3_MOE_EXPERTS))
        intermediate = _count(config, "moe_intermediate_size")
        sparse, normalised = _sparse_layers(config, layers), bool(config.get("norm_topk_prob", False))
    else:
        return None
    per_token = _count(config, "num_experts_per_tok")
    if per_token > experts:
        raise ValueError(
            f"config.json: num_experts_per_tok is {per_token}, but there are {experts} experts only"
        )
    return Mixture(
        experts=experts,
        per_token=per_token,
        intermediate=intermediate,
        normalised=normalised,
        layers=sparse,
    )


def _sparse_layers(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    step, dense = _count(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise ValueError(f"config.json: mlp_only_layers must be a list of layers, got {dense!r}")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"config.json: {key} must be a number above 0, got {value!r}")
    return float(value)
