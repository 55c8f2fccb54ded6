"""The ledger of one instance's KV blocks: each is free, held by a sequence, leased to a handover, or quarantined.

Blocks of a sequence are kept next to each other where that is possible, for a run of neighbours is read in place.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for."""


class Holder(IntEnum):
    FREE = 0
    HELD = 1
    LEASED = 2
    QUARANTINED = 3


@dataclass(frozen=True, slots=True)
class Counts:
    """Blocks by holder; they add up to `total`."""

    total: int
    free: int
    held: int
    leased: int
    quarantined: int


class BlockPool:
    """Blocks 0 to `total` - 1. Each has one holder, named by a key: a sequence's or a lease's."""

    def __init__(self, total: int):
        assert total > 0
        self.total = total
        self._kind = np.zeros(total, dtype=np.int8)
        self._counts = dict.fromkeys(Holder, 0) | {Holder.FREE: total}
        self._tables: dict[Hashable, list[int]] = {}
        self._room: dict[Hashable, int] = {}

    # ---- sequences and leases

    def hold(self, key: Hashable, count: int, room: int) -> list[int]:
        """Give `count` blocks to a sequence that may grow to `room`; OutOfBlocks where too few are free."""
        return self._take(key, count, room, Holder.HELD)

    def lease(self, key: Hashable, count: int, room: int) -> list[int]:
        """Give `count` blocks to a handover's destination; OutOfBlocks where too few are free."""
        return self._take(key, count, room, Holder.LEASED)

    def table(self, key: Hashable) -> Sequence[int]:
        """The blocks of `key`, in the order of their tokens."""
        return self._tables[key]

    def grow(self, key: Hashable, count: int) -> None:
        """Let a sequence hold `count` blocks in all; OutOfBlocks where too few are free."""
        table = self._tables[key]
        for _ in range(count - len(table)):
            block = self._next_to(table, self._room[key] - len(table))
            self._pass([block], Holder.FREE, Holder.HELD)
            table.append(block)

    def adopt(self, key: Hashable) -> None:
        """A lease's blocks become the sequence's of the same key."""
        self._pass(self._tables[key], Holder.LEASED, Holder.HELD)

    def rename(self, was: Hashable, now: Hashable) -> None:
        """A sequence is known by another key from here on."""
        assert now not in self._tables
        self._tables[now] = self._tables.pop(was)
        self._room[now] = self._room.pop(was)

    def quarantine(self, lease: Hashable) -> None:
        """Keep a lease's blocks from everybody: somebody may still write them."""
        self._pass(self._tables[lease], Holder.LEASED, Holder.QUARANTINED)

    def free(self, key: Hashable) -> None:
        """Free all blocks of a sequence or lease."""
        table = self._tables.pop(key)
        del self._room[key]
        holder = Holder(self._kind[table[0]])
        assert holder is not Holder.FREE, f"{key} frees a block twice"
        self._pass(table, holder, Holder.FREE)

    def holds(self, key: Hashable) -> bool:
        return key in self._tables

    def counts(self) -> Counts:
        return Counts(self.total, *self._counts.values())

    def _pass(self, blocks: list[int], giver: Holder, taker: Holder) -> None:
        """All of `blocks` go from one holder to another."""
        assert (self._kind[blocks] == giver).all(), f"blocks are not {giver.name.lower()}"
        self._kind[blocks] = taker
        self._counts[giver] -= len(blocks)
        self._counts[taker] += len(blocks)

    # ---- where blocks are found

    def _take(self, key: Hashable, count: int, room: int, kind: Holder) -> list[int]:
        assert key not in self._tables and count > 0
        if self._counts[Holder.FREE] < count:
            raise OutOfBlocks(f"{count} blocks were asked for")
        start = self._find_run(max(count, room))
        if start is None:
            start = self._find_run(count)
        blocks = self._scattered(count) if start is None else list(range(start, start + count))
        self._pass(blocks, Holder.FREE, kind)
        self._tables[key] = blocks
        self._room[key] = max(count, room)
        return blocks

    def _find_run(self, length: int) -> int | None:
        """Where the shortest run of free blocks begins that is long enough and that no sequence is to grow into."""
        usable = self._kind == Holder.FREE
        for key, table in self._tables.items():
            usable[table[-1] + 1 : table[-1] + 1 + self._room[key] - len(table)] = False
        edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.view(np.int8), [0]))))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        fitting = np.flatnonzero(lengths >= length)
        return int(starts[fitting[np.argmin(lengths[fitting])]]) if len(fitting) else None

    def _scattered(self, count: int) -> list[int]:
        """Free blocks wherever they are, the longest runs first."""
        free = np.flatnonzero(self._kind == Holder.FREE)
        runs = np.split(free, np.flatnonzero(np.diff(free) > 1) + 1)
        longest_first = sorted(runs, key=len, reverse=True)
        return [int(block) for run in longest_first for block in run][:count]

    def _next_to(self, table: list[int], left: int) -> int:
        """The block after the last one; else where `left` blocks are free in a row; else any."""
        after = table[-1] + 1
        if after < self.total and self._kind[after] == Holder.FREE:
            return after
        for length in (max(left, 1), 1):
            start = self._find_run(length)
            if start is not None:
                return start
        if not self._counts[Holder.FREE]:
            raise OutOfBlocks("one more block was asked for")
        return int(np.argmin(self._kind))
