"""Whole blocks of one layer between the paged cache and a contiguous staging buffer."""

import torch


def gather_blocks(kv: torch.Tensor, blocks: torch.Tensor, staging: torch.Tensor) -> None:
    """Copies `blocks` [n] of a layer's cache [2, B, S, K, D] into `staging` [2, n, S, K, D], in their order."""
    torch.index_select(kv, 1, blocks, out=staging)


def scatter_blocks(staging: torch.Tensor, blocks: torch.Tensor, kv: torch.Tensor) -> None:
    """Copies `staging` [2, n, S, K, D] into `blocks` [n] of a layer's cache [2, B, S, K, D]."""
    kv.index_copy_(1, blocks, staging)
