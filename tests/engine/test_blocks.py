"""The ledger of blocks: every block has one holder, whatever the order of events."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from penstock.engine.blocks import BlockPool, Holder, OutOfBlocks

TOTAL = 40


class Ledger(RuleBasedStateMachine):
    """Beside the pool, a plain account of who holds what."""

    held = Bundle("held")
    leased = Bundle("leased")
    quarantined = Bundle("quarantined")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.tables: dict[int, tuple[Holder, list[int]]] = {}
        self.keys = 0

    def _enter(self, take, kind: Holder, count: int, room: int):
        self.keys += 1
        free = TOTAL - sum(len(table) for _, table in self.tables.values())
        if count > free:
            with pytest.raises(OutOfBlocks):
                take(self.keys, count, room)
            assert not self.pool.holds(self.keys)
            return multiple()
        self.tables[self.keys] = kind, list(take(self.keys, count, room))
        assert len(self.pool.table(self.keys)) == count
        return self.keys

    @rule(target=held, count=st.integers(1, 12), room=st.integers(0, 20))
    def hold(self, count, room):
        return self._enter(self.pool.hold, Holder.HELD, count, room)

    @rule(target=leased, count=st.integers(1, 12), room=st.integers(0, 20))
    def lease(self, count, room):
        return self._enter(self.pool.lease, Holder.LEASED, count, room)

    @rule(key=held, more=st.integers(0, 5))
    def grow(self, key, more):
        if key not in self.tables:
            return
        before = list(self.pool.table(key))
        try:
            self.pool.grow(key, len(before) + more)
        except OutOfBlocks:
            assert self.pool.counts().free == 0
        after = list(self.pool.table(key))
        assert after[: len(before)] == before, "tokens stay where they are"
        self.tables[key] = Holder.HELD, after

    @rule(target=held, key=consumes(leased))
    def adopt(self, key):
        table = self.tables[key][1]
        self.pool.adopt(key)
        assert list(self.pool.table(key)) == table, "tokens stay where they were copied to"
        self.tables[key] = Holder.HELD, table
        return key

    @rule(target=quarantined, key=consumes(leased))
    def quarantine(self, key):
        self.pool.quarantine(key)
        self.tables[key] = Holder.QUARANTINED, self.tables[key][1]
        return key

    @rule(target=held, key=consumes(held))
    def rename(self, key):
        self.keys += 1
        self.pool.rename(key, self.keys)
        self.tables[self.keys] = self.tables.pop(key)
        return self.keys

    @rule(key=st.one_of(consumes(held), consumes(leased), consumes(quarantined)))
    def free(self, key):
        self.pool.free(key)
        del self.tables[key]
        assert not self.pool.holds(key)

    @invariant()
    def every_block_has_one_holder(self):
        blocks = [block for _, table in self.tables.values() for block in table]
        assert len(set(blocks)) == len(blocks)
        assert all(0 <= block < TOTAL for block in blocks)

    @invariant()
    def counts_add_up(self):
        counts = self.pool.counts()
        assert counts.free + counts.held + counts.leased + counts.quarantined == counts.total == TOTAL
        for kind, found in ((Holder.HELD, counts.held), (Holder.LEASED, counts.leased)):
            assert found == sum(len(table) for holder, table in self.tables.values() if holder is kind)


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_blocks_are_freed_once():
    pool = BlockPool(4)
    pool.hold("a", 2, 2)
    pool.free("a")
    with pytest.raises(KeyError):
        pool.free("a")


def test_only_a_lease_is_adopted_or_quarantined():
    pool = BlockPool(4)
    pool.hold("a", 2, 2)
    for wrong in (pool.adopt, pool.quarantine):
        with pytest.raises(AssertionError):
            wrong("a")


def test_a_key_holds_once():
    pool = BlockPool(4)
    pool.hold("a", 1, 1)
    with pytest.raises(AssertionError):
        pool.lease("a", 1, 1)


def test_sequences_that_grow_in_turns_stay_in_one_run_each():
    pool = BlockPool(64)
    for key in "abcd":
        pool.hold(key, 1, 16)
    for count in range(2, 17):
        for key in "abcd":
            pool.grow(key, count)
    for key in "abcd":
        table = list(pool.table(key))
        assert table == list(range(table[0], table[0] + 16))


def test_the_room_that_one_sequence_grows_into_is_lent_where_nothing_else_is_free():
    pool = BlockPool(8)
    pool.hold("a", 1, 8)
    assert len(pool.hold("b", 7, 7)) == 7
    pool.free("b")
    pool.grow("a", 8)
    assert pool.counts().free == 0


def test_a_displaced_sequence_goes_on_where_its_rest_fits_in_one_run():
    pool = BlockPool(32)
    pool.hold("a", 1, 4)
    pool.hold("b", 30, 30)
    pool.free("b")
    pool.hold("wall", 2, 2)  # takes the shortest run, which may be the next to `a`
    pool.grow("a", 4)
    table = list(pool.table("a"))
    assert sum(after != before + 1 for before, after in zip(table, table[1:], strict=False)) <= 1
