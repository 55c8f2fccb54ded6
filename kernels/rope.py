"""Rotary position embedding (https://arxiv.org/abs/2104.09864) on interleaved pairs of dimensions."""

import torch

from .device import on_gpu


def apply_rope(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Turns each pair `(x[2i], x[2i + 1])` of `x` [n, heads, D] by `rotations` [n, D / 2], complex64."""
    if on_gpu(x):
        from . import rope_triton

        return rope_triton.apply_rope(x, rotations)
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations.unsqueeze(1)).flatten(-2).to(x.dtype)
