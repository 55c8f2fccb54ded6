"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467)."""

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x**2) + eps) * weight` over the last axis; `weight` may have leading axes that broadcast."""
    return F.rms_norm(x, x.shape[-1:], None, eps) * weight
