"""The ledger of one instance's KV blocks: each is free, held, cached, leased to a handover, or quarantined.

Full blocks whose KV is computed are known by the names of their contents: several sequences may hold one, and when
nobody does it stays cached until its memory is needed. Blocks of a sequence are kept next to each other where that is
possible, for a run of neighbours is read in place.

Where every layer of the model has a sliding window, a sequence lets go of the blocks that its next token no longer
sees. Its table keeps their places, so that a token's position still says where its block stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .prefixes import PrefixIndex

RUN = 16
"""Blocks in a row that are worth looking for, and evicted at a time: fewer are copied rather than read in place."""

GONE = -1
"""In a table, at the place of a block that a sliding window has passed: nobody reads or writes there."""

SLACK = 32
"""One in so many blocks may be left free where free ones lie scattered: what is cached makes way for a run instead."""


class OutOfBlocks(Exception):
    """Fewer blocks can be had than were asked for."""


class Holder(IntEnum):
    FREE = 0
    HELD = 1
    CACHED = 2
    LEASED = 3
    QUARANTINED = 4


@dataclass(frozen=True, slots=True)
class Counts:
    """Blocks by holder; free, held, cached, leased and quarantined ones add up to `total`."""

    total: int
    free: int
    held: int
    cached: int
    leased: int
    quarantined: int
    pinned: int
    """Those of the cached ones that were asked to be kept for a while."""


@dataclass(slots=True)
class _Table:
    """The blocks of a sequence or lease, in the order of their tokens. The first `shared` were cached, or
    gone, when it began.

    `gone <= named` where the pool caches, but for a parted one.
    """

    blocks: list[int]
    gone: int
    """How many leading places are `GONE`."""
    room: int
    """How many blocks it may come to have at once."""
    shared: int
    kind: Holder
    """Who has its own blocks, those after the shared ones."""
    named: int
    """How many leading blocks are in the index."""
    parted: bool = False
    """Another sequence has the same content in the index: the rest is entered when this one is freed."""

    @property
    def held(self) -> list[int]:
        """The blocks that it has."""
        return self.blocks[self.gone :] if self.gone else self.blocks

    @property
    def count(self) -> int:
        return len(self.blocks) - self.gone

    @property
    def coming(self) -> int:
        """How many more blocks it may come to have."""
        return max(0, self.room - self.count)


class BlockPool:
    """Blocks 0 to `total` - 1. Sequences and leases are named by keys; nothing is cached where `caches` is false."""

    def __init__(self, total: int, caches: bool = True, span: int | None = None):
        """A token sees at most `span` of the full blocks before its own; None where some layer sees them all."""
        assert total > 0
        self.total = total
        self.caches = caches
        self.span = span
        self._kind = np.zeros(total, dtype=np.int8)
        self._counts = dict.fromkeys(Holder, 0) | {Holder.FREE: total}
        self._tables: dict[Hashable, _Table] = {}
        self._index = PrefixIndex()

    # ---- sequences and leases

    def behind(self, full: int) -> int:
        """How many of so many leading full blocks the next token does not see."""
        return 0 if self.span is None else max(0, full - self.span)

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest prefix of `names` that is known; they are safe only once somebody holds them.

        Of a prefix those must be known that its next token sees; the others are `GONE`.
        """
        if self.span is None:
            return self._index.find(names)
        gone, blocks = self._index.find_behind(names, self.span)
        return [GONE] * gone + blocks

    def find_from(self, names: Sequence[bytes], gone: int) -> list[int]:
        """The blocks of the longest prefix of `names` that is known but for its first `gone`."""
        return [GONE] * gone + self._index.find(names[gone:])

    def hold(self, key: Hashable, count: int, room: int, known: Sequence[int] = ()) -> None:
        """Give `count` blocks to a sequence that may grow to `room`, the first being those `known` to `find`.

        OutOfBlocks, with nothing changed, where too few can be had.
        """
        self._take(key, count, room, known, Holder.HELD)

    def lease(self, key: Hashable, count: int, room: int, known: Sequence[int] = ()) -> None:
        """Give `count` blocks to a handover's destination, like `hold`. Those `known` are held, and never written."""
        self._take(key, count, room, known, Holder.LEASED)

    def table(self, key: Hashable) -> Sequence[int]:
        """The blocks of `key`, in the order of their tokens; `GONE` in the first places where a window has passed."""
        return self._tables[key].blocks

    def gone(self, key: Hashable) -> int:
        """How many leading places of its table are `GONE`."""
        return self._tables[key].gone

    def count(self, key: Hashable) -> int:
        """How many blocks it has."""
        return self._tables[key].count

    def length(self, key: Hashable) -> int:
        """How long the table of `key` is; 0 where it has none."""
        table = self._tables.get(key)
        return 0 if table is None else len(table.blocks)

    def grow(self, key: Hashable, count: int) -> None:
        """Let a sequence hold `count` blocks in all; OutOfBlocks, with nothing changed, where too few can be had."""
        table = self._tables[key]
        more = count - len(table.blocks)
        if more > 0:
            self._require(more, self._counts[Holder.CACHED])
            table.blocks += self._give(more, table, Holder.HELD)

    def shed(self, key: Hashable, gone: int) -> None:
        """A sequence lets go of the blocks in its first `gone` places; those in the index stay cached."""
        table = self._tables[key]
        assert table.kind is Holder.HELD and gone <= len(table.blocks)
        blocks = table.blocks[table.gone : gone]
        if blocks:
            table.blocks[table.gone : gone] = [GONE] * len(blocks)
            table.gone = gone
            self._let_go(blocks, table.kind)
            self._index.touch([block for block in blocks if block in self._index])

    def adopt(self, key: Hashable, count: int) -> None:
        """A lease's first `count` blocks become the sequence's of the same key; those behind them are free."""
        table = self._tables[key]
        self._turn(table, Holder.LEASED, Holder.HELD)
        rest = table.blocks[count:]
        assert table.shared <= count and table.named <= count
        if rest:
            del table.blocks[count:]
            self._let_go(rest, table.kind)

    def rename(self, was: Hashable, now: Hashable) -> None:
        """A sequence is known by another key from here on."""
        assert now not in self._tables
        self._tables[now] = self._tables.pop(was)

    def quarantine(self, lease: Hashable) -> None:
        """Keep a lease's own blocks from everybody: somebody may still write them."""
        self._turn(self._tables[lease], Holder.LEASED, Holder.QUARANTINED)

    def publish(self, key: Hashable, names: Sequence[bytes]) -> None:
        """The first `len(names)` blocks of a sequence are full and computed: others may hold them too."""
        table = self._tables[key]
        assert table.kind is Holder.HELD and len(names) <= len(table.blocks)
        while self.caches and not table.parted and table.named < len(names):
            place = table.named
            if self._index.block_of(names[place]) is not None:
                table.parted = True
                return
            self._index.add(table.blocks[place], names[place], names[place - 1] if place else None)
            table.named += 1

    def free(self, key: Hashable, names: Sequence[bytes] = (), until: float = 0.0) -> None:
        """Let go of all blocks of a sequence or lease.

        Of a sequence, the first `len(names)`, which are full and computed, stay cached; pinned `until` then.
        """
        table = self._tables.pop(key)
        path = self._enter(table, names)
        self._let_go(table.held, table.kind)
        self._index.touch(path, until)

    def holds(self, key: Hashable) -> bool:
        return key in self._tables

    @property
    def overlap(self) -> int:
        """By how much tables together are longer than the blocks in them: those that several hold."""
        taken = self._counts[Holder.HELD] + self._counts[Holder.LEASED] + self._counts[Holder.QUARANTINED]
        return sum(table.count for table in self._tables.values()) - taken

    def expire(self, now: float) -> None:
        """Pins that ended by `now` are gone."""
        self._index.expire(now)

    def counts(self) -> Counts:
        by = self._counts
        return Counts(
            total=self.total,
            free=by[Holder.FREE],
            held=by[Holder.HELD],
            cached=by[Holder.CACHED],
            leased=by[Holder.LEASED],
            quarantined=by[Holder.QUARANTINED],
            pinned=self._index.pinned,
        )

    # ---- what is cached

    def _enter(self, table: _Table, names: Sequence[bytes]) -> list[int]:
        """Enter into the index what is not there yet; the blocks of `names` in it, which may be another's."""
        path = table.blocks[table.gone : table.named]
        if not self.caches:
            return path
        for place in range(max(table.gone, table.named), len(names)):
            known = self._index.block_of(names[place])
            if known is None:
                known = table.blocks[place]
                self._index.add(known, names[place], names[place - 1] if place else None)
            path.append(known)
        return path

    def _let_go(self, blocks: list[int], kind: Holder) -> None:
        """They go where nobody else holds them: to the cache those in the index; the others, of `kind`, are free."""
        idle = [block for block in blocks if block in self._index and self._index.release(block)]
        self._pass(idle, Holder.HELD, Holder.CACHED)
        self._pass([block for block in blocks if block not in self._index], kind, Holder.FREE)

    def _evict(self, count: int) -> None:
        self._pass([self._index.evict() for _ in range(count)], Holder.CACHED, Holder.FREE)

    # ---- who has a block

    def _take(self, key: Hashable, count: int, room: int, known: Sequence[int], kind: Holder) -> None:
        assert key not in self._tables and len(known) <= count > 0
        gone = known.count(GONE)
        idle = [block for block in known[gone:] if self._kind[block] == Holder.CACHED]
        self._require(count - len(known), self._counts[Holder.CACHED] - len(idle))
        self._pass(idle, Holder.CACHED, Holder.HELD)
        for block in known[gone:]:
            self._index.take(block)
        table = _Table(list(known), gone, max(count - gone, room), len(known), kind, named=len(known))
        table.blocks += self._give(count - len(known), table, kind)
        self._tables[key] = table

    def _require(self, count: int, evictable: int) -> None:
        free = self._counts[Holder.FREE]
        if count > free + evictable:
            raise OutOfBlocks(f"{count} blocks were asked for, {free} are free and {evictable} cached")

    def _give(self, count: int, table: _Table, kind: Holder) -> list[int]:
        """`count` blocks for `kind`, evicting where that is needed, to go behind those of the table."""
        blocks = self._behind(table.blocks[-1], count) if table.blocks else []
        rest = count - len(blocks)
        if rest:
            blocks += self._elsewhere(rest, max(rest, table.coming - len(blocks)), blocks)
        self._pass(blocks, Holder.FREE, kind)
        return blocks

    def _turn(self, table: _Table, giver: Holder, taker: Holder) -> None:
        assert table.kind is giver, f"blocks are not {giver.name.lower()}"
        self._pass(table.blocks[table.shared :], giver, taker)
        table.kind = taker

    def _pass(self, blocks: list[int], giver: Holder, taker: Holder) -> None:
        """All of `blocks` go from one holder to another."""
        assert (self._kind[blocks] == giver).all(), f"blocks are not {giver.name.lower()}"
        self._kind[blocks] = taker
        self._counts[giver] -= len(blocks)
        self._counts[taker] += len(blocks)

    # ---- where blocks are found

    def _behind(self, block: int, count: int) -> list[int]:
        """The free ones among the next `count` blocks, up to the first that is not."""
        following = self._kind[block + 1 : block + 1 + count]
        taken = np.flatnonzero(following != Holder.FREE)
        return list(range(block + 1, block + 1 + (int(taken[0]) if len(taken) else len(following))))

    def _elsewhere(self, count: int, room: int, taken: list[int]) -> list[int]:
        """Free blocks, none of `taken`, for a sequence that may take `room`.

        The shortest run to grow in; else the longest; else several; only then what other sequences are to grow into.
        """
        usable = self._usable(taken)
        starts, lengths = _runs(usable)
        wanted = max(count, min(room, RUN))
        lacking = count - int(usable.sum()) + self.total // SLACK
        if lengths.max(initial=0) < wanted and lacking > 0:
            lacking += min(room - count, RUN)
            self._evict(min(self._counts[Holder.CACHED], wanted, lacking))
            usable = self._usable(taken)
            starts, lengths = _runs(usable)
        longest = int(lengths.max(initial=0))
        if longest >= count:
            start = starts[np.argmin(np.where(lengths >= min(room, longest), lengths, self.total))]
            return list(range(int(start), int(start) + count))
        blocks = _longest_first(starts, lengths)[:count]
        if len(blocks) < count:
            usable = self._kind == Holder.FREE
            usable[taken + blocks] = False
            blocks += _longest_first(*_runs(usable))[: count - len(blocks)]
        return blocks

    def _usable(self, taken: list[int]) -> np.ndarray:
        """Which blocks are free, not `taken`, and not such as a sequence is to grow into."""
        usable = self._kind == Holder.FREE
        usable[taken] = False
        for table in self._tables.values():
            last = table.blocks[-1]
            usable[last + 1 : last + 1 + table.coming] = False
        return usable


def _runs(usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, length) of the runs of true places."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.view(np.int8), [0]))))
    return edges[::2], edges[1::2] - edges[::2]


def _longest_first(starts: np.ndarray, lengths: np.ndarray) -> list[int]:
    """The places of these runs, longest runs first."""
    order = np.argsort(-lengths, kind="stable")
    return [place for run in order for place in range(starts[run], starts[run] + lengths[run])]
