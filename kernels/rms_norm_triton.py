"""Root-mean-square normalisation on GPUs, with the residual's addition in the same pass."""

import torch
import triton.language as tl

from .jit import jit, power_of_two


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Twin of `rms_norm.rms_norm`; `weight` [hidden] for `x` [n, hidden], or [heads, D] for [n, heads, D]."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, None, out, eps)
    return out


def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Twin of `rms_norm.add_rms_norm`."""
    if update is None:
        return x, rms_norm(x, weight, eps)
    assert x.is_contiguous() and update.is_contiguous() and x.shape == update.shape
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, update, weight, total, out, eps)
    return total, out


def _launch(
    x: torch.Tensor,
    update: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
    eps: float,
) -> None:
    rows, width = x.shape[1:-1].numel(), x.shape[-1]
    assert weight.is_contiguous() and weight.shape == x.shape[1:]
    assert x.dim() <= 3 and x.stride(-1) == 1 and (x.dim() == 2 or x.stride(1) == width)
    normalise[(len(x), rows)](
        x,
        update,
        weight,
        total,
        out,
        x.stride(0),
        width,
        eps,
        ADD=update is not None,
        WIDTH_PAD=power_of_two(width),
        num_warps=warps(width),
    )


def warps(width: int) -> int:
    """Warps for a row of `width` elements."""
    return min(max(power_of_two(width) // 512, 1), 16)


@jit
def normalise(
    x, update, weight, total, out, x_stride, width, eps, ADD: tl.constexpr, WIDTH_PAD: tl.constexpr
):
    """Row (axis 1) of a token (axis 0); every row of a token has weights of its own."""
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    rows = tl.num_programs(1)
    places = tl.arange(0, WIDTH_PAD)
    mask = places < width
    values = tl.load(x + token * x_stride + row * width + places, mask=mask, other=0.0)
    at = (token * rows + row) * width + places
    if ADD:
        values = values.to(tl.float32) + tl.load(update + at, mask=mask, other=0.0).to(tl.float32)
        values = values.to(x.dtype.element_ty)  # what the twin adds and normalises is rounded
        tl.store(total + at, values, mask=mask)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / width + eps)
    normed = (values * scale).to(out.dtype.element_ty).to(tl.float32)
    weights = tl.load(weight + row * width + places, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (normed * weights).to(out.dtype.element_ty), mask=mask)
