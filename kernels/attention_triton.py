"""Paged attention on GPUs: one kernel for decoding, shared prefixes and chunks.

Queries that share a key head are rows of one tile, so that keys are read once for the whole group of heads. The online
softmax is that of FlashAttention (https://arxiv.org/abs/2205.14135), the splitting of keys that of Flash-Decoding.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl

from .jit import jit, power_of_two
from .paged import PagedBatch
from .segments import Segment
from .segments_triton import merge_parts
from .work import HostWork, Work, chunk_work, decode_work, padded_tables, shared_work

LOG2_E = math.log2(math.e)
DECODE = "decode"
"""The key of `decode`'s work in a batch."""
PROGRAMS_PER_PROCESSOR = 8
"""Programs of a split-KV launch for each multiprocessor: several rounds of them, so that a last uneven round costs
little."""


class Shape(NamedTuple):
    """Tile and launch sizes of `attend`."""

    rows: int
    """Queries times heads of a group."""
    keys: int
    num_warps: int
    num_stages: int


def decode_shape(group: int, dim: int, dtype: torch.dtype) -> Shape:
    """For one query a sequence: as few rows as tensor cores take."""
    keys = 64 if dim * dtype.itemsize <= 256 else 32
    return Shape(max(16, power_of_two(group)), keys, 4, 3 if dtype.itemsize == 2 else 2)


def chunk_shape(group: int, dim: int, dtype: torch.dtype) -> Shape:
    """For many queries a sequence, chunks and shared prefixes."""
    if dtype.itemsize > 2:
        shape = Shape(32, 32, 4, 1)
    elif dim > 128:
        shape = Shape(64, 32, 4, 2)
    else:
        shape = Shape(128, 64, 8, 3)
    return shape._replace(rows=max(shape.rows, power_of_two(group)))


def decode(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
    """`paged_decode_attention` of a batch without shared prefixes."""
    parts, work = _decode_parts(q, kv, batch)
    return merge_parts(parts, work.spans, q.dtype).out


def decode_segment(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> Segment:
    """Twin of `attention.decode_segment`."""
    parts, work = _decode_parts(q, kv, batch)
    return merge_parts(parts, work.spans, torch.float32)


def shared_prefix_segment(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> Segment:
    """Twin of `attention.shared_prefix_segment`."""
    heads, kv_heads = q.shape[1], kv.shape[3]
    shape = chunk_shape(heads // kv_heads, q.shape[2], q.dtype)

    def make() -> HostWork:
        tile = shape.rows * kv_heads // heads
        return shared_work(batch.shared, len(q), tile, shape.keys, kv_heads, programs(q.device))

    work = _work(batch, "shared", make)
    return merge_parts(_parts(q, kv, work, batch.block_size, shape), work.spans, torch.float32)


def prefill(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
    """`paged_prefill_attention`; the chunks' own keys and values are read from the cache."""
    heads, kv_heads = q.shape[1], kv.shape[3]
    shape = chunk_shape(heads // kv_heads, q.shape[2], q.dtype)

    def make() -> HostWork:
        return chunk_work(batch.starts, batch.counts, batch.window, shape.rows * kv_heads // heads)

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _launch(q, kv, out, None, _work(batch, "chunks", make), batch.block_size, batch.window, shape)
    return out


def decode_items(batch: PagedBatch, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> Work:
    """What `decode` launches for `batch`, made once; it is the same for all layers."""

    def make() -> HostWork:
        firsts, ends = np.array(batch.firsts), np.array(batch.starts) + 1
        keys = decode_shape(heads // kv_heads, dim, dtype).keys
        return decode_work(firsts, ends, keys, kv_heads, programs(batch.device))

    return _work(batch, DECODE, make)


def _decode_parts(q: torch.Tensor, kv: torch.Tensor, batch: PagedBatch) -> tuple[Segment, Work]:
    (_, heads, dim), kv_heads = q.shape, kv.shape[3]
    work = decode_items(batch, heads, kv_heads, dim, q.dtype)
    return _parts(q, kv, work, batch.block_size, decode_shape(heads // kv_heads, dim, q.dtype)), work


def _work(batch: PagedBatch, kind: str, make: Callable[[], HostWork]) -> Work:
    return batch.once(kind, lambda: make().upload(padded_tables(batch.tables), batch.device))


def _parts(q: torch.Tensor, kv: torch.Tensor, work: Work, block_size: int, shape: Shape) -> Segment:
    """What each item gives, not yet merged."""
    _, heads, dim = q.shape
    out = torch.empty((work.parts, heads, dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((work.parts, heads), dtype=torch.float32, device=q.device)
    _launch(q, kv, out, lse, work, block_size, None, shape)
    return Segment(out, lse)


def _launch(
    q: torch.Tensor,
    kv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    work: Work,
    block_size: int,
    window: int | None,
    shape: Shape,
) -> None:
    _, heads, dim = q.shape
    kv_heads = kv.shape[3]
    assert q.stride(2) == 1 and q.stride(1) == dim and kv.is_contiguous()
    attend[(len(work.items), kv_heads)](
        q,
        kv,
        out,
        lse,
        work.items,
        work.tables,
        q.stride(0),
        kv.stride(0),
        work.tables.shape[1],
        LOG2_E / math.sqrt(dim),
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        DIM_PAD=max(16, power_of_two(dim)),
        BLOCK=block_size,
        WINDOW=window or 0,
        WITH_LSE=lse is not None,
        ROWS=shape.rows,
        KEYS=shape.keys,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )


def programs(device: torch.device) -> int:
    """How many programs a split-KV launch should have."""
    return PROGRAMS_PER_PROCESSOR * _processors(device)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of `device`; 1 where Triton's interpreter runs on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@jit(do_not_specialize=["table_width"])
def attend(
    q,
    kv,
    out,
    lse,
    items,
    tables,
    q_stride,
    values_offset,
    table_width,
    scale_log2,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    WITH_LSE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One item of `work` (axis 0) for one key head (axis 1).

    A query at position p sees the keys of the item's range in `(p - WINDOW, p]`, or all up to p where WINDOW is 0.
    Writes normalised outputs, and the log-sum-exp of the scaled scores where WITH_LSE.
    """
    item = items + tl.program_id(0) * 7
    head = tl.program_id(1)
    first_query = tl.load(item)
    queries = tl.load(item + 1)
    position = tl.load(item + 2)
    table = tables + tl.load(item + 3) * table_width
    first = tl.load(item + 4)
    last = tl.load(item + 5)
    first_out = tl.load(item + 6)

    group: tl.constexpr = HEADS // KV_HEADS
    rows = tl.arange(0, ROWS)
    query = rows // group
    row_head = head * group + rows % group
    dims = tl.arange(0, DIM_PAD)
    live = query < queries
    mask = live[:, None] & (dims < DIM)[None, :]
    q_at = (first_query + query).to(tl.int64) * q_stride + row_head * DIM
    tile = tl.load(q + q_at[:, None] + dims[None, :], mask=mask, other=0.0)
    at = position + query

    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    keys = kv + head * DIM
    values = keys + values_offset

    # Tiles of keys that a window hides from some query; tiles that all queries see whole; the rest.
    all_from = first
    if WINDOW > 0:
        hidden = tl.maximum(position + queries - WINDOW - first, 0)
        all_from = first + tl.cdiv(hidden, KEYS) * KEYS
    all_to = first + tl.maximum(tl.minimum(last, position + 1) - first, 0) // KEYS * KEYS
    if WINDOW > 0:
        for begin in tl.range(first, tl.minimum(all_from, last), KEYS):
            best, total, acc = _visit(
                tile, at, best, total, acc, keys, values, table, begin, last, scale_log2,
                KV_HEADS, DIM, DIM_PAD, BLOCK, WINDOW, KEYS, True,
            )  # fmt: skip
    for begin in tl.range(all_from, all_to, KEYS):
        best, total, acc = _visit(
            tile, at, best, total, acc, keys, values, table, begin, last, scale_log2,
            KV_HEADS, DIM, DIM_PAD, BLOCK, WINDOW, KEYS, False,
        )  # fmt: skip
    for begin in tl.range(tl.maximum(all_from, all_to), last, KEYS):
        best, total, acc = _visit(
            tile, at, best, total, acc, keys, values, table, begin, last, scale_log2,
            KV_HEADS, DIM, DIM_PAD, BLOCK, WINDOW, KEYS, True,
        )  # fmt: skip

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    row_out = (first_out + query).to(tl.int64)
    out_at = (row_out * HEADS + row_head) * DIM
    tl.store(out + out_at[:, None] + dims[None, :], acc.to(out.dtype.element_ty), mask=mask)
    if WITH_LSE:
        tl.store(lse + row_out * HEADS + row_head, (best + tl.log2(total)) / 1.4426950408889634, mask=live)


@jit
def _visit(
    tile,
    at,
    best,
    total,
    acc,
    keys,
    values,
    table,
    begin,
    last,
    scale_log2,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The softmax so far, in base 2, after the keys `[begin, begin + KEYS)`; MASKED where not all see them all."""
    places = begin + tl.arange(0, KEYS)
    dims = tl.arange(0, DIM_PAD)
    inside = places < last
    if MASKED:
        block = tl.load(table + places // BLOCK, mask=inside, other=0)
    else:
        block = tl.load(table + places // BLOCK)
    token = (block.to(tl.int64) * BLOCK + places % BLOCK) * (KV_HEADS * DIM)
    # What lies beyond the range may be no number at all: it must not be read, for 0 times NaN is NaN.
    if MASKED:
        k = tl.load(
            keys + token[None, :] + dims[:, None], mask=inside[None, :] & (dims < DIM)[:, None], other=0.0
        )
        v = tl.load(
            values + token[:, None] + dims[None, :], mask=inside[:, None] & (dims < DIM)[None, :], other=0.0
        )
    elif DIM != DIM_PAD:
        k = tl.load(keys + token[None, :] + dims[:, None], mask=(dims < DIM)[:, None], other=0.0)
        v = tl.load(values + token[:, None] + dims[None, :], mask=(dims < DIM)[None, :], other=0.0)
    else:
        k = tl.load(keys + token[None, :] + dims[:, None])
        v = tl.load(values + token[:, None] + dims[None, :])
    scores = tl.dot(tile, k, input_precision="ieee") * scale_log2
    if MASKED:
        visible = inside[None, :] & (places[None, :] <= at[:, None])
        if WINDOW > 0:
            visible = visible & (places[None, :] > at[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    better = tl.maximum(best, tl.max(scores, 1))
    # A row that has seen no key yet has no maximum to subtract.
    base = tl.where(better == float("-inf"), 0.0, better) if MASKED else better
    weights = tl.exp2(scores - base[:, None])
    faded = tl.exp2(best - base)
    total = total * faded + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None], input_precision="ieee")
    return better, total, acc
