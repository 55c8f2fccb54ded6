"""New keys and values into the paged cache, on GPUs."""

import torch
import triton.language as tl

from .jit import jit, power_of_two


def store_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Twin of `store_kv.store_kv`; a row whose slot is below 0, as CUDA graphs are padded with, is not stored."""
    _, kv_heads, dim = k.shape
    assert kv.is_contiguous() and all(x.stride(2) == 1 and x.stride(1) == dim for x in (k, v))
    width = kv_heads * dim
    store[(len(k), 2)](
        k,
        v,
        kv,
        slots,
        k.stride(0),
        v.stride(0),
        kv.stride(0),
        width,
        WIDTH_PAD=power_of_two(width),
        num_warps=min(max(width // 256, 1), 8),
    )


@jit
def store(k, v, kv, slots, k_stride, v_stride, values_offset, width, WIDTH_PAD: tl.constexpr):
    """The key or the value (axis 1) of a token (axis 0)."""
    token = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, WIDTH_PAD)
    slot = tl.load(slots + token).to(tl.int64)
    mask = (places < width) & (slot >= 0)
    if tl.program_id(1) == 0:
        tl.store(kv + slot * width + places, tl.load(k + token * k_stride + places, mask=mask), mask=mask)
    else:
        row = tl.load(v + token * v_stride + places, mask=mask)
        tl.store(kv + values_offset + slot * width + places, row, mask=mask)
