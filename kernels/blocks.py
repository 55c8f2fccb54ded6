"""Whole blocks of one layer between the paged cache and a contiguous staging buffer."""

import torch

from .device import on_gpu

_WIDE = torch.complex128


def gather_blocks(kv: torch.Tensor, blocks: torch.Tensor, staging: torch.Tensor) -> None:
    """Copies `blocks` [n] of a layer's cache [2, B, S, K, D] into `staging` [2, n, S, K, D], in their order."""
    if on_gpu(kv):
        from . import blocks_triton

        return blocks_triton.gather_blocks(kv, blocks, staging)
    torch.index_select(kv, 1, blocks, out=staging)


def scatter_blocks(staging: torch.Tensor, blocks: torch.Tensor, kv: torch.Tensor) -> None:
    """Copies `staging` [2, n, S, K, D] into `blocks` [n] of a layer's cache [2, B, S, K, D]."""
    if on_gpu(staging):
        from . import blocks_triton

        return blocks_triton.scatter_blocks(staging, blocks, kv)
    target, source = kv.flatten(2), staging.flatten(2)
    if _can_widen(target) and _can_widen(source):
        target, source = target.view(_WIDE), source.view(_WIDE)
    target.index_copy_(1, blocks, source)


def _can_widen(pages: torch.Tensor) -> bool:
    """Whether pages may be copied as elements of 16 bytes: on CPUs an indexed copy costs by the element."""
    row_bytes = pages.shape[-1] * pages.element_size()
    return row_bytes % _WIDE.itemsize == 0 and pages.data_ptr() % _WIDE.itemsize == 0
