"""The gated activation on GPUs."""

import torch
import triton
import triton.language as tl

from .jit import jit

TILE = 1024


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Twin of `silu_mul.silu_mul`."""
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out = torch.empty((n, width), dtype=gate_up.dtype, device=gate_up.device)
    activate[(n, triton.cdiv(width, TILE))](gate_up, out, width, TILE=TILE, num_warps=4)
    return out


@jit
def activate(gate_up, out, width, TILE: tl.constexpr):
    """A tile (axis 1) of a row (axis 0)."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = places < width
    gate = tl.load(gate_up + row * 2 * width + places, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + places, mask=mask, other=0.0).to(tl.float32)
    gated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + places, (gated * up).to(out.dtype.element_ty), mask=mask)
