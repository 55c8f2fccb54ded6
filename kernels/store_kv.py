"""New keys and values into the paged cache."""

import torch

from .device import on_gpu


def store_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Writes `k`, `v` [n, K, D] into a layer's cache [2, B, S, K, D] at `slots` [n] (`block * S + offset`)."""
    if on_gpu(k):
        from . import store_kv_triton

        return store_kv_triton.store_kv(k, v, kv, slots)
    keys, values = kv.view(2, -1, *kv.shape[3:]).unbind(0)
    keys.index_copy_(0, slots, k)
    values.index_copy_(0, slots, v)
