"""Where the KV of a step's sequences lies in the paged cache.

Legend of shapes in this folder: `n` tokens or sequences of the batch, `H` query heads, `K` key-value heads, `D` the
head's dimension, `B` blocks, `S` tokens a block. A layer's cache is `[2, B, S, K, D]`: keys, then values. A *slot* is a
token's place in it, `block * S + offset`, so that consecutive blocks are consecutive slots.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

# A run of blocks shorter than this is gathered: an attention call of its own costs more than copying it.
VIEW_TOKENS = 256
# So many bytes of a layer's keys and values are copied side by side: up to about there, an attention call for each
# sequence costs more (measured with heads of 32 and 64 dimensions on an EPYC core).
GATHER_BYTES = 4 << 20
# Queries of a chunk that share one mask: it bounds the mask's memory to TILE x context.
TILE_TOKENS = 512


class Reads(NamedTuple):
    """Cached tokens that one sequence attends to, in no particular order."""

    spans: list[tuple[int, int]]
    """(first slot, tokens) of runs long enough to be read in place."""
    slots: torch.Tensor | None
    """Slots of all other tokens, to be gathered."""


class Together(NamedTuple):
    """The sequences with the shortest contexts, to be gathered and attended to as one batch."""

    rows: list[int]
    """Of the batch, ascending."""
    rest: list[int]
    """All other rows."""
    slots: torch.Tensor
    """[rows * longest]: each row's visible tokens, then its first one again, for what pads must be no foreign value."""
    mask: torch.Tensor
    """[rows, 1, 1, longest], false where a row is padded."""


class Tile(NamedTuple):
    """Some queries of a chunk with all that they see."""

    first_row: int
    rows: int
    reads: Reads
    mask: torch.Tensor
    """[rows, keys], true where the key is visible; keys are in the order of positions."""


class SharedPrefix(NamedTuple):
    """Neighbouring sequences of a batch whose first tokens are the same cached ones."""

    first: int
    """Row of the first sequence; the prefix lies in the first blocks of its table, and of the others'."""
    count: int
    tokens: int


@dataclass(frozen=True)
class PagedBatch:
    """Sequences of one step and their block tables, shared by all layers that have the same window.

    Sequence `i` feeds `counts[i]` tokens at positions from `starts[i]` on; its KV up to them lies, or will lie when
    attention runs, in the blocks `tables[i]`. A query at position `p` sees the keys in `(p - window, p]`.
    What no query sees is not read: the blocks at its places in the tables need not be there.
    """

    tables: list[np.ndarray]
    starts: list[int]
    counts: list[int]
    block_size: int
    window: int | None
    device: torch.device
    shared: tuple[SharedPrefix, ...] = ()
    """Disjoint groups of decoding sequences whose shared prefix is read once for the group. Every sequence has tokens
    of its own behind it, and sees all of it."""
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made when a layer first asks for it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def firsts(self) -> list[int]:
        """For each sequence the first position that its last token sees, behind its shared prefix."""
        firsts = [self._first_visible(start + count - 1) for _, start, count in self._sequences()]
        for first, count, tokens in self.shared:
            for row in range(first, first + count):
                assert firsts[row] == 0 and tokens <= self.starts[row]
                firsts[row] = tokens
        return firsts

    @cached_property
    def contexts(self) -> list[Reads]:
        """For each sequence what its last token sees from `firsts` on, itself included: what a decode step reads."""
        return [
            self._locate(table, first, start + count, in_place=True)
            for first, (table, start, count) in zip(self.firsts, self._sequences(), strict=True)
        ]

    def together(self, token_bytes: int) -> Together | None:
        """As many sequences as `GATHER_BYTES` hold, the shortest first; None where that is not even two.

        `token_bytes` are those of a token's keys and values in a layer.
        """
        return self.once(f"together {token_bytes}", lambda: self._together(token_bytes))

    @cached_property
    def shared_prefixes(self) -> list[Reads]:
        """For each group of `shared` its prefix."""
        return [
            self._locate(self.tables[first], 0, tokens, in_place=True) for first, _, tokens in self.shared
        ]

    @cached_property
    def prefixes(self) -> list[Reads | None]:
        """For each sequence the tokens before its chunk; None where a window hides some of them from some query."""
        return [
            self._locate(table, 0, start, in_place=True) if self._sees_all(start + count) else None
            for table, start, count in self._sequences()
        ]

    @cached_property
    def tiles(self) -> list[list[Tile]]:
        """For each sequence its queries in tiles of bounded size."""
        return [list(self._tiles_of(*sequence)) for sequence in self._sequences()]

    def _together(self, token_bytes: int) -> Together | None:
        firsts, ends = np.array(self.firsts), np.array(self.starts) + np.array(self.counts)
        lengths = ends - firsts
        shortest = np.argsort(lengths, kind="stable")
        sizes = np.arange(1, len(lengths) + 1) * lengths[shortest] * token_bytes
        count = int(np.searchsorted(sizes, GATHER_BYTES, side="right"))
        if count < 2:
            return None
        rows = np.sort(shortest[:count])
        slots, visible = self._side_by_side(rows, firsts[rows], lengths[rows])
        return Together(
            rows.tolist(),
            np.sort(shortest[count:]).tolist(),
            torch.from_numpy(slots.reshape(-1)).to(self.device),
            torch.from_numpy(visible[:, None, None]).to(self.device),
        )

    def _side_by_side(
        self, rows: np.ndarray, firsts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slots of these rows' visible tokens, padded to the longest, and which are no padding: [rows, longest]."""
        size, place = self.block_size, np.arange(lengths.max())
        skipped = firsts // size
        tables = [self.tables[row][skip:] for row, skip in zip(rows, skipped, strict=True)]
        starts = np.cumsum([0, *map(len, tables[:-1])])
        visible = place < lengths[:, None]
        positions = (firsts - skipped * size)[:, None] + np.where(visible, place, 0)
        blocks = np.concatenate(tables)[starts[:, None] + positions // size]
        return blocks * size + positions % size, visible

    def _sequences(self) -> Iterator[tuple[np.ndarray, int, int]]:
        return zip(self.tables, self.starts, self.counts, strict=True)

    def _sees_all(self, end: int) -> bool:
        return self.window is None or end <= self.window

    def _first_visible(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)

    def _tiles_of(self, table: np.ndarray, start: int, count: int) -> Iterator[Tile]:
        for first_row in range(0, count, TILE_TOKENS):
            rows = min(TILE_TOKENS, count - first_row)
            position = start + first_row
            first_key = self._first_visible(position)
            reads = self._locate(table, first_key, position + rows, in_place=False)
            queries = torch.arange(position, position + rows, device=self.device).unsqueeze(1)
            keys = torch.arange(first_key, position + rows, device=self.device)
            mask = keys <= queries
            if self.window is not None:
                mask &= keys > queries - self.window
            yield Tile(first_row, rows, reads, mask)

    def _locate(self, table: np.ndarray, first: int, last: int, in_place: bool) -> Reads:
        return locate(table, self.block_size, first, last, in_place).to(self.device)


class _HostReads(NamedTuple):
    spans: list[tuple[int, int]]
    slots: np.ndarray | None

    def to(self, device: torch.device) -> Reads:
        slots = None if self.slots is None else torch.from_numpy(self.slots).to(device)
        return Reads(self.spans, slots)


def locate(table: np.ndarray, block_size: int, first: int, last: int, in_place: bool) -> _HostReads:
    """Splits the positions `[first, last)` of a sequence into runs of consecutive slots.

    A single run is one span. Of several, long ones are spans and the others slots where `in_place`; else all are
    slots, in the order of positions.
    """
    if first >= last:
        return _HostReads([], None)
    skipped = first // block_size
    blocks = table[skipped : (last - 1) // block_size + 1]
    breaks = np.flatnonzero(blocks[1:] != blocks[:-1] + 1) + 1
    offset = first - skipped * block_size
    if not breaks.size:
        return _HostReads([(int(blocks[0]) * block_size + offset, last - first)], None)
    edges = np.concatenate(([0], breaks, [len(blocks)]))
    slots = blocks[edges[:-1]] * block_size
    tokens = np.diff(edges) * block_size
    slots[0] += offset
    tokens[0] -= offset
    tokens[-1] -= (skipped + len(blocks)) * block_size - last
    views = tokens >= VIEW_TOKENS if in_place else np.zeros(len(tokens), dtype=bool)
    spans = list(zip(slots[views].tolist(), tokens[views].tolist(), strict=True))
    return _HostReads(spans, _expand(slots[~views], tokens[~views]))


def _expand(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The slots of runs given by first slot and length, one after the other."""
    if not firsts.size:
        return None
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(firsts - (ends - counts), counts)
