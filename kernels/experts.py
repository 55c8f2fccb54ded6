"""The feed-forward of a mixture of experts."""

import torch

from .linear import linear
from .silu_mul import silu_mul


def expert_feed_forward(
    x: torch.Tensor, experts: torch.Tensor, shares: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Each token of `x` [n, hidden] through its `experts` [n, k], summed by `shares` [n, k] float32.

    `gate_up` [E, 2 * I, hidden], `down` [E, hidden, I]. Tokens are grouped by expert; a token's sum runs over its
    experts in ascending order, whatever the batch. Waits for the device once, to learn the groups' sizes.
    """
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=len(gate_up)).tolist()
    rows = order // experts.shape[1]
    groups = x[rows].split(sizes)
    outs = [
        linear(silu_mul(linear(group, gate_up[expert])), down[expert])
        for expert, group in enumerate(groups)
        if len(group)
    ]
    weighted = torch.cat(outs) * shares.flatten()[order].unsqueeze(1)
    return torch.zeros_like(x).index_add_(0, rows, weighted.to(x.dtype))
