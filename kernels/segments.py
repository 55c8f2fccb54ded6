"""Attention over some of a query's keys, and how several of them become attention over all."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .device import on_gpu


class Segment(NamedTuple):
    """Attention over a set of keys: what merging it with that over other keys takes."""

    out: torch.Tensor
    """[n, H, D] float32; 0 without any key"""
    lse: torch.Tensor
    """[n, H] float32, log-sum-exp of the scaled scores; minus infinity without any key"""


def merge_segments(segments: Sequence[Segment]) -> Segment:
    """Attention over the union of disjoint sets of keys, of the same queries.

    The keys may lie anywhere: a segment is all that must come from where they are.
    """
    if on_gpu(segments[0].out):
        from . import segments_triton

        return segments_triton.merge_segments(segments)
    outs, lses = (torch.stack(tensors) for tensors in zip(*segments, strict=True))
    lse = torch.logsumexp(lses, dim=0)
    weights = torch.exp(lses - lse.masked_fill(lse == float("-inf"), 0.0))
    return Segment((outs * weights.unsqueeze(-1)).sum(0), lse)
