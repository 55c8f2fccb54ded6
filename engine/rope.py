"""Rotary position embeddings as a checkpoint's config.json describes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Parameters of the rotation, named as in config.json; what a type does not use stays at its default."""

    kind: str = "default"
    theta: float = _DEFAULT_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    """Positions of the original training (llama3, yarn)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Whether yarn rounds the ends of its ramp to whole dimensions."""
    attention_factor: float = 1.0
    """What cosines and sines are multiplied by (yarn)."""


def read_rope(config: Mapping[str, Any], max_positions: int) -> Rope:
    """The rotation of a config.json in either spelling: `rope_parameters`, or `rope_theta` and `rope_scaling`.

    As in `transformers`, `rope_scaling` wins where both stand. Raises ValueError for an unknown type.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"config.json: rope parameters must be an object, got {given!r}")
    nested = [key for key, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"config.json: rope parameters of their own for {', '.join(nested)} are not supported"
        )
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in SUPPORTED:
        raise ValueError(
            f"config.json: rope type {kind!r} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"config.json: partial_rotary_factor={partial} is not supported")
    missing = [key for key in _REQUIRED[kind] if given.get(key) is None]
    if missing:
        raise ValueError(f"config.json: rope type {kind!r} needs {', '.join(missing)}")
    theta = _positive(given, "rope_theta", _positive(config, "rope_theta", _DEFAULT_THETA))
    factor = _positive(given, "factor", 1.0)
    return Rope(
        kind=kind,
        theta=theta,
        factor=factor,
        low_freq_factor=_number(given, "low_freq_factor", 1.0),
        high_freq_factor=_number(given, "high_freq_factor", 1.0),
        original_max_positions=_original_positions(config, given, max_positions),
        beta_fast=_number(given, "beta_fast", 0.0) or 32.0,
        beta_slow=_number(given, "beta_slow", 0.0) or 1.0,
        truncate=bool(given.get("truncate", True)),
        attention_factor=_attention_factor(given, factor) if kind == "yarn" else 1.0,
    )


def _original_positions(config: Mapping[str, Any], given: Mapping[str, Any], max_positions: int) -> int:
    """A value beside the rope parameters wins over one among them; without either it is the model's own."""
    name = "original_max_position_embeddings"
    original = config.get(name) or given.get(name) or max_positions
    if not isinstance(original, int) or original < 1:
        raise ValueError(f"config.json: {name} must be a positive integer, got {original!r}")
    return original


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """Yarn's temperature, section 3.4 of https://arxiv.org/abs/2309.00071, with DeepSeek's two exponents."""
    explicit = given.get("attention_factor")
    if explicit is not None:
        return float(explicit)
    mscale, all_dim = _number(given, "mscale", 0.0), _number(given, "mscale_all_dim", 0.0)
    if mscale and all_dim:
        return _mscale(factor, mscale) / _mscale(factor, all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _number(mapping: Mapping[str, Any], key: str, default: float) -> float:
    value = mapping.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"config.json: {key} must be a number, got {value!r}")
    return float(value)


def _positive(mapping: Mapping[str, Any], key: str, default: float) -> float:
    number = _number(mapping, key, default)
    if not 0 < number < math.inf:
        raise ValueError(f"config.json: {key} must be above 0, got {number:g}")
    return number
