"""A peer's KV cache mapped into this process: the source writes blocks in place, without staging.

For caches in `SharedMemory` of the same host, on CPUs. (GPUs would need CUDA IPC.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .cache import KVCache
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
    def attach(cls, descriptor: WindowDescriptor, layout: CacheLayout) -> LocalWindow:
        """Map a peer's cache of `layout`. PeerLost where it is gone or out of reach."""
        if descriptor.size_bytes != layout.total_bytes:
            raise ValueError(
                f"the peer's cache has {descriptor.size_bytes} bytes, its layout {layout.total_bytes}"
            )
        if descriptor.host != host_identity():
            raise PeerLost("the peer's cache is on another host")
        try:
            memory = SharedMemory.open(descriptor.pid, descriptor.fd, descriptor.name, descriptor.size_bytes)
        except OSError as error:
            raise PeerLost(f"the peer's cache cannot be mapped: {error}") from error
        return cls(memory, layout)

    def __init__(self, memory: SharedMemory, layout: CacheLayout):
        self._memory = memory
        self._layout = layout
        self._target = _pages(np.frombuffer(memory.buffer, np.uint8), layout)
        self._cache: KVCache | None = None
        self._pages = self._target[:0]

    def write(
        self,
        cache: KVCache,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        layers: slice = ALL_LAYERS,
    ) -> None:
        """See `OneSided.write`."""
        source, target = self._source(cache)[layers], self._target[layers]
        for start, to, count in runs(source_ids, destination_ids):
            target[:, :, to : to + count] = source[:, :, start : start + count]

    def _source(self, cache: KVCache) -> np.ndarray:
        """The pages of `cache`: checked once, for it is the same one in every write."""
        if cache is not self._cache:
            if cache.device.type != "cpu":
                raise ValueError(f"same-host memory moves KV between CPUs, not from {cache.device}")
            assert cache.layout.shape_key == self._layout.shape_key, "both ends compared their layouts"
            self._cache, self._pages = cache, _pages(cache.buffer.numpy(), cache.layout)
        return self._pages

    def close(self) -> None:
        """See `OneSided.close`."""
        self._memory.close()
        self._target = self._pages = np.empty(0, np.uint8)
        self._cache = None


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
    """A cache's flat buffer as `[layers, 2, blocks, page_bytes]`."""
    return buffer.reshape(layout.layers, 2, layout.blocks, layout.page_bytes)
