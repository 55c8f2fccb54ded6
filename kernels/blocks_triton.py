"""Whole blocks of one layer between the paged cache and a contiguous staging buffer, on GPUs."""

import torch
import triton
import triton.language as tl

from .jit import jit

TILE = 2048
"""Words of a page that one program copies."""


def gather_blocks(kv: torch.Tensor, blocks: torch.Tensor, staging: torch.Tensor) -> None:
    """Twin of `blocks.gather_blocks`."""
    _launch(kv, staging, blocks, gather=True)


def scatter_blocks(staging: torch.Tensor, blocks: torch.Tensor, kv: torch.Tensor) -> None:
    """Twin of `blocks.scatter_blocks`."""
    _launch(kv, staging, blocks, gather=False)


def _launch(kv: torch.Tensor, staging: torch.Tensor, blocks: torch.Tensor, gather: bool) -> None:
    assert kv.is_contiguous() and staging.is_contiguous() and staging.shape[1] == len(blocks)
    word = torch.int32 if all(_has_words(pages) for pages in (kv, staging)) else torch.int16
    cache, buffer = kv.flatten(2).view(word), staging.flatten(2).view(word)  # integers are copied bit by bit
    page = cache.shape[2]
    copy_pages[(len(blocks), 2, triton.cdiv(page, TILE))](
        cache, buffer, blocks, cache.shape[1] * page, page, GATHER=gather, TILE=TILE, num_warps=4
    )


def _has_words(pages: torch.Tensor) -> bool:
    """Whether pages begin and end between words of 4 bytes."""
    return pages[0, 0].nbytes % 4 == 0 and pages.data_ptr() % 4 == 0


@jit
def copy_pages(cache, staging, blocks, values_offset, page, GATHER: tl.constexpr, TILE: tl.constexpr):
    """A tile (axis 2) of the keys or the values (axis 1) of a block (axis 0)."""
    index = tl.program_id(0)
    half = tl.program_id(1).to(tl.int64)
    places = tl.program_id(2) * TILE + tl.arange(0, TILE)
    mask = places < page
    block = tl.load(blocks + index).to(tl.int64)
    in_cache = cache + half * values_offset + block * page + places
    in_staging = staging + (half * tl.num_programs(0) + index) * page + places
    if GATHER:
        tl.store(in_staging, tl.load(in_cache, mask=mask), mask=mask)
    else:
        tl.store(in_cache, tl.load(in_staging, mask=mask), mask=mask)
