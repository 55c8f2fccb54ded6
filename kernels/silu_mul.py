"""The gated activation of the feed-forward layer."""

import torch
import torch.nn.functional as F

from .device import on_gpu


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of `gate_up` [n, 2 * I], whose first half is the gate; returns [n, I]."""
    if on_gpu(gate_up):
        from . import silu_mul_triton

        return silu_mul_triton.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
