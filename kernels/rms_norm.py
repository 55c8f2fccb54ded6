"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467)."""

import torch
import torch.nn.functional as F

from .device import on_gpu


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last axis; `weight` may have leading axes that broadcast."""
    if on_gpu(x):
        from . import rms_norm_triton

        return rms_norm_triton.rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight


def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream `x + update`, both [n, hidden], and its `rms_norm`; `x` itself where there is no update."""
    if on_gpu(x):
        from . import rms_norm_triton

        return rms_norm_triton.add_rms_norm(x, update, weight, eps)
    total = x if update is None else x + update
    return total, rms_norm(total, weight, eps)
