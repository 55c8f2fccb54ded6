"""A peer's KV cache mapped into this process: the source writes blocks in place, without staging.

For caches in `SharedMemory` of the same host, on CPUs. (GPUs would need CUDA IPC.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .cache import BlockStore
from .layout import CacheLayout
from .memory import SharedMemory, host_identity, name_of, open_shared
from .transport import ALL_LAYERS, PeerLost


@dataclass(frozen=True, kw_only=True)
class WindowDescriptor:
    """Where a peer finds a cache's memory."""

    host: str
    """`host_identity` of the process that holds the memory."""
    pid: int
    fd: int
    name: str
    """What the system calls the memory; tells it from what may later be under the same `pid` and `fd`."""
    size_bytes: int

    def reachable(self) -> bool:
        """Whether this process can map the memory: then a pair of instances may use `LocalWindow`."""
        if self.host != host_identity():
            return False
        try:
            os.close(open_shared(self.pid, self.fd, self.name, self.size_bytes))
        except OSError:
            return False
        return True


class LocalWindow:
    """A view into a peer's cache through which blocks are written; used by one thread.

    The memory outlives its owner for as long as the window is open, so writes after the peer's death harm nobody.
    """

    @staticmethod
    def describe(memory: SharedMemory) -> WindowDescriptor:
        """What a peer needs to reach the cache that lies in `memory`."""
        return WindowDescriptor(
            host=host_identity(),
            pid=os.getpid(),
            fd=memory.fd,
            name=name_of(memory.fd),
            size_bytes=memory.size_bytes,
        )

    @classmethod
    def attach(cls, descriptor: WindowDescriptor, layout: CacheLayout, ranks: int = 1) -> LocalWindow:
        """Map a peer's cache of `layout`, which its `ranks` divide among them. PeerLost where it is out of reach."""
        size_bytes = layout.share(ranks).total_bytes * ranks
        if descriptor.size_bytes != size_bytes:
            raise ValueError(f"the peer's cache has {descriptor.size_bytes} bytes, its layout {size_bytes}")
        if descriptor.host != host_identity():
            raise PeerLost("the peer's cache is on another host")
        try:
            memory = SharedMemory.open(descriptor.pid, descriptor.fd, descriptor.name, descriptor.size_bytes)
        except OSError as error:
            raise PeerLost(f"the peer's cache cannot be mapped: {error}") from error
        return cls(memory, layout, ranks)

    def __init__(self, memory: SharedMemory, layout: CacheLayout, ranks: int = 1):
        self._memory = memory
        self._layout = layout
        flat = np.frombuffer(memory.buffer, np.uint8).reshape(ranks, -1)
        self._targets = [_pages(part, layout.share(ranks)) for part in flat]
        self._cache: BlockStore | None = None
        self._copies: list[tuple[np.ndarray, np.ndarray]] = []

    def write(
        self,
        cache: BlockStore,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        layers: slice = ALL_LAYERS,
    ) -> None:
        """See `OneSided.write`."""
        joined = list(runs(source_ids, destination_ids))
        for source, target in self._pairs(cache):
            for start, to, count in joined:
                target[layers, :, to : to + count] = source[layers, :, start : start + count]

    def _pairs(self, cache: BlockStore) -> list[tuple[np.ndarray, np.ndarray]]:
        """What goes from which rank of `cache` to which of the peer: settled once, for it is always the same cache."""
        if cache is not self._cache:
            if cache.device.type != "cpu":
                raise ValueError(f"same-host memory moves KV between CPUs, not from {cache.device}")
            assert cache.layout.shape_key == self._layout.shape_key, "both ends compared their layouts"
            sources = [_pages(part.buffer.numpy(), part.layout) for part in cache.parts]
            self._cache = cache
            self._copies = [
                (sources[source][..., heads, :], self._targets[target][..., target_heads, :])
                for source, heads, target, target_heads in self._layout.routes(
                    len(sources), len(self._targets)
                )
            ]
        return self._copies

    def close(self) -> None:
        """See `OneSided.close`."""
        self._memory.close()
        self._targets, self._copies, self._cache = [], [], None


def runs(source_ids: Sequence[int], destination_ids: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Pairs of ids as (first source, first destination, count), with neighbours on both sides joined."""
    first = count = 0
    for i, pair in enumerate(zip(source_ids, destination_ids, strict=True)):
        if count and pair == (source_ids[first] + count, destination_ids[first] + count):
            count += 1
            continue
        if count:
            yield source_ids[first], destination_ids[first], count
        first, count = i, 1
    if count:
        yield source_ids[first], destination_ids[first], count


def _pages(buffer: np.ndarray, layout: CacheLayout) -> np.ndarray:
    """A cache's flat buffer as `[layers, 2, blocks, block_size, kv_heads, bytes of a head]`."""
    return buffer.reshape(layout.layers, 2, layout.blocks, layout.block_size, layout.kv_heads, -1)
