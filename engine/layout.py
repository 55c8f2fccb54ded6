"""The shape of a KV cache, in numbers that both ends of a transfer compare."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


class Route(NamedTuple):
    """Heads that one rank of a source hands to one rank of a destination, as each of them counts its own."""

    source: int
    source_heads: slice
    target: int
    target_heads: slice


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """A KV cache is one flat buffer: layer after layer, each `[2, blocks, block_size, kv_heads, head_dim]`.

    Index 0 of the first axis holds keys, index 1 values. Two caches may exchange blocks where all but `blocks`
    agree (`shape_key`).
    """

    layers: int
    blocks: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"KV dtype must be one of {', '.join(ITEM_BYTES)}, got {self.dtype!r}")
        if min(self.layers, self.blocks, self.block_size, self.kv_heads, self.head_dim) < 1:
            raise ValueError(f"a KV cache needs positive sizes, got {self}")

    @property
    def page_bytes(self) -> int:
        """Bytes of the keys (or the values) of one block in one layer: the longest run that a single block has."""
        return self.block_size * self.kv_heads * self.head_dim * ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block: keys and values of all layers."""
        return 2 * self.layers * self.page_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer, all blocks; layer `i` starts at `i * layer_bytes`."""
        return 2 * self.blocks * self.page_bytes

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes

    def share(self, ranks: int) -> "CacheLayout":
        """What each of `ranks` holds: its key-value heads, one at least."""
        return replace(self, kv_heads=max(1, self.kv_heads // ranks))

    def held_heads(self, rank: int, ranks: int) -> slice:
        """The key-value heads that `rank` of `ranks` holds; where there are more ranks than heads, several hold one."""
        first = rank * self.kv_heads // ranks
        return slice(first, first + self.share(ranks).kv_heads)

    def senders(self, ranks: int) -> list[int]:
        """Of `ranks` those that hand their heads on: of several that hold the same, the first."""
        firsts = [self.held_heads(rank, ranks).start for rank in range(ranks)]
        return [rank for rank in range(ranks) if firsts.index(firsts[rank]) == rank]

    def routes(self, sources: int, targets: int) -> Iterator[Route]:
        """How every head reaches each of `targets` ranks that holds it, from one of `sources` ranks."""
        for target in range(targets):
            wanted = self.held_heads(target, targets)
            for source in self.senders(sources):
                own = self.held_heads(source, sources)
                first, stop = max(own.start, wanted.start), min(own.stop, wanted.stop)
                if first < stop:
                    there = slice(first - wanted.start, stop - wanted.start)
                    yield Route(source, slice(first - own.start, stop - own.start), target, there)

    @property
    def shape_key(self) -> tuple[int, int, int, int, str]:
        """What must be equal for blocks to move from one cache to another."""
        return (self.layers, self.block_size, self.kv_heads, self.head_dim, self.dtype)
