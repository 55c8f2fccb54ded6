"""The turns of rotary position embeddings, by position."""

import math

import torch

from .rope import Rope


class Rotations:
    """Kept once they are computed, for twice as many positions each time that more are asked for."""

    def __init__(self, rope: Rope, head_dim: int, device: torch.device) -> None:
        self._frequencies = rope_frequencies(rope, head_dim).to(device)
        self._scale = rope.attention_factor
        self._known = self._turns(0)

    def at(self, positions: torch.Tensor, end: int) -> torch.Tensor:
        """Those at `positions` [n], all below `end`: complex numbers, [n, head_dim / 2]."""
        if end > len(self._known):
            self._known = self._turns(1 << (end - 1).bit_length())
        return torch.view_as_complex(self._known.index_select(0, positions))

    def _turns(self, count: int) -> torch.Tensor:
        """[count, head_dim / 2, 2]"""
        positions = torch.arange(count, device=self._frequencies.device)
        angles = positions.unsqueeze(1).float() * self._frequencies
        return torch.stack((angles.cos() * self._scale, angles.sin() * self._scale), dim=-1)


def rope_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair of dimensions, float32 [head_dim / 2], as `transformers` computes them.

    `dynamic` equals `default` here: it differs beyond the model's positions only, and no context goes there.
    """
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (rope.theta**powers)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, frequencies)
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, head_dim, rope.theta**powers)
    return frequencies


def _llama3_frequencies(rope: Rope, frequencies: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelengths = 2 * math.pi / frequencies
    longest_kept = rope.original_max_positions / rope.high_freq_factor
    shortest_stretched = rope.original_max_positions / rope.low_freq_factor
    smooth = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    stretched = torch.where(wavelengths > shortest_stretched, frequencies / rope.factor, between)
    return torch.where(wavelengths < longest_kept, frequencies, stretched)


def _yarn_frequencies(rope: Rope, head_dim: int, periods: torch.Tensor) -> torch.Tensor:
    """Section 3.2 of https://arxiv.org/abs/2309.00071: a ramp between stretched and kept frequencies."""

    def dimension(turns: float) -> float:
        span = rope.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(span) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - kept) + 1.0 / periods * kept
