"""Rotary position embedding on GPUs."""

import torch
import triton
import triton.language as tl

from .jit import jit, power_of_two

HEADS_AT_ONCE = 8


def apply_rope(x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Twin of `rope.apply_rope`."""
    n, heads, dim = x.shape
    assert x.stride(2) == 1 and x.stride(1) == dim and rotations.is_contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rotate[(n, triton.cdiv(heads, HEADS_AT_ONCE))](
        x,
        torch.view_as_real(rotations),
        out,
        x.stride(0),
        heads,
        DIM=dim,
        PAIRS_PAD=power_of_two(dim // 2),
        HEADS_TILE=HEADS_AT_ONCE,
        num_warps=2,
    )
    return out


@jit
def rotate(
    x,
    rotations,
    out,
    x_stride,
    heads,
    DIM: tl.constexpr,
    PAIRS_PAD: tl.constexpr,
    HEADS_TILE: tl.constexpr,
):
    """Some heads (axis 1) of a token (axis 0)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS_TILE + tl.arange(0, HEADS_TILE)
    places = tl.arange(0, PAIRS_PAD * 2)
    mask = (head < heads)[:, None] & (places < DIM)[None, :]
    at = head[:, None] * DIM + places[None, :]
    tile = tl.load(x + token * x_stride + at, mask=mask, other=0.0).to(tl.float32)
    turns = tl.load(rotations + token * DIM + places, mask=places < DIM, other=0.0)
    real, imaginary = tl.split(tl.reshape(tile, [HEADS_TILE, PAIRS_PAD, 2]))
    cos, sin = tl.split(tl.reshape(turns, [PAIRS_PAD, 2]))
    turned_real = real * cos[None, :] - imaginary * sin[None, :]
    turned_imaginary = real * sin[None, :] + imaginary * cos[None, :]
    turned = tl.reshape(tl.join(turned_real, turned_imaginary), [HEADS_TILE, PAIRS_PAD * 2])
    tl.store(out + token * heads * DIM + at, turned.to(out.dtype.element_ty), mask=mask)
