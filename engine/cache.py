"""The KV cache of one instance: tensors over one flat buffer, or one for each rank."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.blocks import gather_blocks, scatter_blocks
from ..kernels.device import upload
from .layout import CacheLayout


class BlockStore(ABC):
    """Blocks of the whole model's KV, wherever they lie: gathered into staging, and scattered from it.

    Whoever holds a block's id may read and write it; the store itself knows no holders.
    """

    def __init__(self, layout: CacheLayout, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self._dtype: torch.dtype = getattr(torch, layout.dtype)

    @property
    @abstractmethod
    def parts(self) -> tuple["KVCache", ...]:
        """The cache of each rank."""

    @abstractmethod
    def gather(
        self, blocks: Sequence[int], layers: slice = slice(None), out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Copies `blocks` of `layers` into one contiguous tensor shaped like `staging`: `out`, else a new one."""

    @abstractmethod
    def scatter(self, blocks: Sequence[int], staging: torch.Tensor, layers: slice = slice(None)) -> None:
        """Copies `staging`, as `gather` makes it, into `blocks` of `layers`."""

    def staging(self, blocks: int, layers: slice = slice(None)) -> torch.Tensor:
        """Uninitialised room for `blocks` blocks of `layers`: `[layers, 2, blocks, block_size, kv_heads, head_dim]`."""
        page = (self.layout.block_size, self.layout.kv_heads, self.layout.head_dim)
        return torch.empty((self._count(layers), 2, blocks, *page), dtype=self._dtype, device=self.device)

    def staging_bytes(self, blocks: int, layers: slice = slice(None)) -> int:
        """Bytes of `staging(blocks, layers)`."""
        return self._count(layers) * 2 * blocks * self.layout.page_bytes

    def from_bytes(self, data: torch.Tensor, blocks: int, layers: slice = slice(None)) -> torch.Tensor:
        """A flat uint8 tensor of `staging_bytes` seen as staging, without a copy."""
        page = (self.layout.block_size, self.layout.kv_heads, self.layout.head_dim)
        shape = (self._count(layers), 2, blocks, *page)
        assert data.numel() == math.prod(shape) * self._dtype.itemsize
        return data.view(self._dtype).view(shape)

    def _count(self, layers: slice) -> int:
        return len(range(self.layout.layers)[layers])


class KVCache(BlockStore):
    """Keys and values of all layers, as `layout` describes them.

    Memory is only reserved: the system hands out a page when it is first written, so a large cache starts at once.
    """

    def __init__(
        self, layout: CacheLayout, device: torch.device, buffer: memoryview | bytearray | None = None
    ) -> None:
        """`buffer`, writable and of `layout.total_bytes`, may be memory that another process maps (CPU only)."""
        super().__init__(layout, device)
        if buffer is None:
            self.buffer = torch.empty(layout.total_bytes, dtype=torch.uint8, device=device)
        else:
            assert device.type == "cpu" and len(buffer) == layout.total_bytes
            self.buffer = torch.frombuffer(buffer, dtype=torch.uint8)
        shape = (layout.layers, 2, layout.blocks, layout.block_size, layout.kv_heads, layout.head_dim)
        self.layers: tuple[torch.Tensor, ...] = self.buffer.view(self._dtype).view(shape).unbind(0)
        """For each layer `[2, blocks, block_size, kv_heads, head_dim]`."""

    @property
    def parts(self) -> tuple["KVCache", ...]:
        return (self,)

    def gather(
        self, blocks: Sequence[int], layers: slice = slice(None), out: torch.Tensor | None = None
    ) -> torch.Tensor:
        staging = self.staging(len(blocks), layers) if out is None else out
        ids = self._ids(blocks)
        for layer, part in zip(self.layers[layers], staging.unbind(0), strict=True):
            gather_blocks(layer, ids, part)
        return staging

    def scatter(self, blocks: Sequence[int], staging: torch.Tensor, layers: slice = slice(None)) -> None:
        ids = self._ids(blocks)
        for layer, part in zip(self.layers[layers], staging.unbind(0), strict=True):
            scatter_blocks(part, ids, layer)

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        return upload(np.array(blocks, dtype=np.int64), self.device)


class ShardedCache(BlockStore):
    """The caches of an instance's ranks as one: each holds its heads of every block, under the same block ids."""

    def __init__(self, layout: CacheLayout, parts: Sequence[KVCache]) -> None:
        """`layout` is of the whole."""
        super().__init__(layout, parts[0].device)
        self._parts = tuple(parts)
        self._heads = [layout.held_heads(rank, len(parts)) for rank in range(len(parts))]
        self._senders = layout.senders(len(parts))

    @property
    def parts(self) -> tuple[KVCache, ...]:
        return self._parts

    def gather(
        self, blocks: Sequence[int], layers: slice = slice(None), out: torch.Tensor | None = None
    ) -> torch.Tensor:
        staging = self.staging(len(blocks), layers) if out is None else out
        for rank in self._senders:
            staging[..., self._heads[rank], :] = self._parts[rank].gather(blocks, layers)
        return staging

    def scatter(self, blocks: Sequence[int], staging: torch.Tensor, layers: slice = slice(None)) -> None:
        for part, heads in zip(self._parts, self._heads, strict=True):
            part.scatter(blocks, staging[..., heads, :].contiguous(), layers)
