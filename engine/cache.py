"""The KV cache of one instance: tensors over one flat buffer."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.blocks import gather_blocks, scatter_blocks
from ..kernels.device import upload
from .layout import CacheLayout


class KVCache:
    """Keys and values of all layers, as `layout` describes them.

    Memory is only reserved: the system hands out a page when it is first written, so a large cache starts at once.
    Whoever holds a block's id may read and write it; the cache itself knows no holders.
    """

    def __init__(
        self, layout: CacheLayout, device: torch.device, buffer: memoryview | bytearray | None = None
    ) -> None:
        """`buffer`, writable and of `layout.total_bytes`, may be memory that another process maps (CPU only)."""
        self.layout = layout
        self.device = device
        if buffer is None:
            self.buffer = torch.empty(layout.total_bytes, dtype=torch.uint8, device=device)
        else:
            assert device.type == "cpu" and len(buffer) == layout.total_bytes
            self.buffer = torch.frombuffer(buffer, dtype=torch.uint8)
        self._dtype = getattr(torch, layout.dtype)
        shape = (layout.layers, 2, layout.blocks, layout.block_size, layout.kv_heads, layout.head_dim)
        self.layers: tuple[torch.Tensor, ...] = self.buffer.view(self._dtype).view(shape).unbind(0)
        """For each layer `[2, blocks, block_size, kv_heads, head_dim]`."""

    def staging(self, blocks: int, layers: slice = slice(None)) -> torch.Tensor:
        """Uninitialised room for `blocks` blocks of `layers`: `[layers, 2, blocks, block_size, kv_heads, head_dim]`."""
        page = (self.layout.block_size, self.layout.kv_heads, self.layout.head_dim)
        return torch.empty(
            (len(self.layers[layers]), 2, blocks, *page), dtype=self._dtype, device=self.device
        )

    def staging_bytes(self, blocks: int, layers: slice = slice(None)) -> int:
        """Bytes of `staging(blocks, layers)`."""
        return len(self.layers[layers]) * 2 * blocks * self.layout.page_bytes

    def gather(
        self, blocks: Sequence[int], layers: slice = slice(None), out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Copies `blocks` of `layers` into one contiguous tensor shaped like `staging`: `out`, else a new one."""
        staging = self.staging(len(blocks), layers) if out is None else out
        ids = self._ids(blocks)
        for layer, part in zip(self.layers[layers], staging.unbind(0), strict=True):
            gather_blocks(layer, ids, part)
        return staging

    def scatter(self, blocks: Sequence[int], staging: torch.Tensor, layers: slice = slice(None)) -> None:
        """Copies `staging`, as `gather` makes it, into `blocks` of `layers`."""
        ids = self._ids(blocks)
        for layer, part in zip(self.layers[layers], staging.unbind(0), strict=True):
            scatter_blocks(part, ids, layer)

    def from_bytes(self, data: torch.Tensor, blocks: int, layers: slice = slice(None)) -> torch.Tensor:
        """A flat uint8 tensor of `staging_bytes` seen as staging, without a copy."""
        page = (self.layout.block_size, self.layout.kv_heads, self.layout.head_dim)
        shape = (len(self.layers[layers]), 2, blocks, *page)
        assert data.numel() == math.prod(shape) * self._dtype.itemsize
        return data.view(self._dtype).view(shape)

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        return upload(np.array(blocks, dtype=np.int64), self.device)
