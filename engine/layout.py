"""The shape of a KV cache, in numbers that both ends of a transfer compare."""

from dataclasses import dataclass, replace

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


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

    @property
    def shape_key(self) -> tuple[int, int, int, int, str]:
        """What must be equal for blocks to move from one cache to another."""
        return (self.layers, self.block_size, self.kv_heads, self.head_dim, self.dtype)
