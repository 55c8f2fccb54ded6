"""The merge of attention over several sets of keys, on GPUs."""

from collections.abc import Sequence

import torch
import triton.language as tl

from .jit import jit, power_of_two
from .segments import Segment

MERGE_PARTS = 16
"""Parts of one query that are read at once."""


def merge_segments(segments: Sequence[Segment]) -> Segment:
    """Twin of `segments.merge_segments`."""
    n, device = len(segments[0].out), segments[0].out.device
    queries = torch.arange(n, dtype=torch.int32, device=device)
    spans = torch.stack(
        [queries, torch.full_like(queries, n), torch.full_like(queries, len(segments))], dim=1
    )
    outs, lses = zip(*segments, strict=True)
    return merge_parts(Segment(torch.cat(outs), torch.cat(lses)), spans, torch.float32)


def merge_parts(parts: Segment, spans: torch.Tensor, dtype: torch.dtype) -> Segment:
    """For each query the parts that its row of `spans` (see `work`) names, merged; the output as `dtype`."""
    _, heads, dim = parts.out.shape
    out = torch.empty((len(spans), heads, dim), dtype=dtype, device=parts.out.device)
    lse = torch.empty((len(spans), heads), dtype=torch.float32, device=parts.out.device)
    merge[(len(spans), heads)](
        parts.out,
        parts.lse,
        spans,
        out,
        lse,
        HEADS=heads,
        DIM=dim,
        DIM_PAD=power_of_two(dim),
        PARTS=MERGE_PARTS,
        num_warps=4,
    )
    return Segment(out, lse)


@jit
def merge(
    parts,
    parts_lse,
    spans,
    out,
    lse,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One head (axis 1) of one query (axis 0): softmax over the union of its parts' keys.

    Without any part the output is 0 and its log-sum-exp minus infinity.
    """
    query = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(spans + query * 3)
    step = tl.load(spans + query * 3 + 1)
    count = tl.load(spans + query * 3 + 2)
    dims = tl.arange(0, DIM_PAD)
    best = float("-inf")
    total = 0.0
    acc = tl.zeros([DIM_PAD], tl.float32)
    for begin in tl.range(0, count, PARTS):
        index = begin + tl.arange(0, PARTS)
        row = (first + index * step).to(tl.int64) * HEADS + head
        scores = tl.load(parts_lse + row, mask=index < count, other=float("-inf"))
        mask = (index < count)[:, None] & (dims < DIM)[None, :]
        tile = tl.load(parts + row[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
        better = tl.maximum(best, tl.max(scores, 0))
        base = tl.where(better == float("-inf"), 0.0, better)
        weights = tl.exp2((scores - base) * 1.4426950408889634)
        faded = tl.exp2((best - base) * 1.4426950408889634)
        total = total * faded + tl.sum(weights, 0)
        acc = acc * faded + tl.sum(tile * weights[:, None], 0)
        best = better
    acc = acc / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (query * HEADS + head) * DIM + dims, acc.to(out.dtype.element_ty), mask=dims < DIM)
    tl.store(lse + query * HEADS + head, best + tl.log2(total) / 1.4426950408889634)
