"""The ledger of blocks: who has which, what is found again, and what goes first, whatever the order of events."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from penstock.engine.blocks import GONE, BlockPool, Holder, OutOfBlocks

TOTAL = 40

Path = tuple[int, ...]
"""Contents of a sequence's blocks, from the first on."""


def names(path: Path) -> list[bytes]:
    return [repr(path[: end + 1]).encode() for end in range(len(path))]


@dataclass
class Owner:
    """What a plain account knows of one table. The first `shared` of its blocks are others' as well."""

    path: Path
    blocks: list[int]
    shared: int
    kind: Holder = Holder.HELD
    computed: int = field(init=False)

    def __post_init__(self):
        self.computed = self.shared

    @property
    def held(self) -> list[int]:
        return [block for block in self.blocks if block != GONE]


PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple)


class Ledger(RuleBasedStateMachine):
    """Beside the pool, a plain account of who holds what, and of what was last written into each block."""

    held = Bundle("held")
    leased = Bundle("leased")
    quarantined = Bundle("quarantined")
    span: int | None = None

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(TOTAL, span=self.span)
        self.owners: dict[int, Owner] = {}
        self.content: dict[int, Path] = {}
        self.keys = 0

    def _enter(self, take, kind: Holder, path: Path, count: int, room: int):
        self.keys += 1
        known = self.pool.find(names(path)[:count])
        for place, block in enumerate(known):
            if place >= self.pool.behind(len(known)):
                assert self.content[block] == path[: place + 1], "what is found is what was asked for"
            else:
                assert block == GONE
        taken = {block for owner in self.owners.values() for block in owner.held} | set(known) - {GONE}
        if count - len(known) > TOTAL - len(taken):
            before = self.pool.counts()
            with pytest.raises(OutOfBlocks):
                take(self.keys, count, room, known)
            assert not self.pool.holds(self.keys) and self.pool.counts() == before
            return multiple()
        take(self.keys, count, room, known)
        table = list(self.pool.table(self.keys))
        assert len(table) == count and table[: len(known)] == known
        self.owners[self.keys] = Owner(path, table, len(known), kind)
        return self.keys

    @rule(target=held, path=PATHS, ahead=st.integers(0, 4), room=st.integers(0, 20))
    def hold(self, path, ahead, room):
        return self._enter(self.pool.hold, Holder.HELD, path, max(1, len(path) - ahead), room)

    @rule(target=leased, path=PATHS, room=st.integers(0, 20))
    def lease(self, path, room):
        return self._enter(self.pool.lease, Holder.LEASED, path, len(path), room)

    @rule(key=held, more=st.integers(0, 5))
    def grow(self, key, more):
        if key not in self.owners:
            return
        owner = self.owners[key]
        try:
            self.pool.grow(key, len(owner.blocks) + more)
        except OutOfBlocks:
            counts = self.pool.counts()
            assert counts.free + counts.cached < more
        after = list(self.pool.table(key))
        assert after[: len(owner.blocks)] == owner.blocks, "tokens stay where they are"
        owner.blocks = after

    @rule(key=held, more=st.integers(0, 6), told=st.booleans())
    def compute(self, key, more, told):
        """Write some more blocks, and say so."""
        if key not in self.owners:
            return
        owner = self.owners[key]
        self._write(owner, min(owner.computed + more, len(owner.blocks), len(owner.path)))
        if told:
            self.pool.publish(key, names(owner.path)[: owner.computed])

    def _write(self, owner: Owner, until: int):
        others = {block for other in self.owners.values() if other is not owner for block in other.held}
        for place in range(owner.computed, until):
            assert owner.blocks[place] not in others, "nobody else reads a block that is written"
            self.content[owner.blocks[place]] = owner.path[: place + 1]
        owner.computed = max(owner.computed, until)

    @rule(key=held, less=st.integers(0, 2))
    def shed(self, key, less):
        """A window passes over some of what is computed."""
        if key not in self.owners:
            return
        owner = self.owners[key]
        gone = max(0, self.pool.behind(owner.computed) - less)
        self.pool.publish(key, names(owner.path)[: owner.computed])
        self.pool.shed(key, gone)
        owner.blocks[:gone] = [GONE] * gone
        assert list(self.pool.table(key)) == owner.blocks and self.pool.count(key) == len(owner.held)

    @rule(target=held, key=consumes(leased), fewer=st.integers(0, 3))
    def adopt(self, key, fewer):
        """Of the blocks that it was leased it may need fewer."""
        owner = self.owners[key]
        count = max(1, owner.shared, len(owner.blocks) - fewer)
        owner.blocks, owner.path = owner.blocks[:count], owner.path[:count]
        self._write(owner, len(owner.path))
        self.pool.adopt(key, count)
        assert list(self.pool.table(key)) == owner.blocks, "tokens stay where they were copied to"
        owner.kind = Holder.HELD
        return key

    @rule(target=quarantined, key=consumes(leased))
    def quarantine(self, key):
        self.pool.quarantine(key)
        self.owners[key].kind = Holder.QUARANTINED
        return key

    @rule(target=held, key=consumes(held))
    def rename(self, key):
        self.keys += 1
        self.pool.rename(key, self.keys)
        self.owners[self.keys] = self.owners.pop(key)
        return self.keys

    @rule(key=consumes(held), keeps=st.booleans(), until=st.sampled_from((0.0, 5.0, 9.0)))
    def end(self, key, keeps, until):
        owner = self.owners.pop(key)
        self.pool.free(key, names(owner.path)[: owner.computed] if keeps else (), until)
        assert not self.pool.holds(key)
        if keeps and owner.computed:
            assert len(self.pool.find(names(owner.path)[: owner.computed])) == owner.computed

    @rule(key=st.one_of(consumes(leased), consumes(quarantined)))
    def release(self, key):
        self.pool.free(key)
        del self.owners[key]

    @rule(now=st.sampled_from((4.0, 5.0, 9.0)))
    def time_passes(self, now):
        self.pool.expire(now)

    @invariant()
    def only_what_is_computed_is_shared(self):
        for key, owner in self.owners.items():
            for other_key, other in self.owners.items():
                for place in range(len(owner.blocks)) if key < other_key else ():
                    if owner.blocks[place] in other.held:
                        assert other.blocks[place] == owner.blocks[place]
                        assert place < owner.computed and place < other.computed
                        assert owner.path[: place + 1] == other.path[: place + 1]

    @invariant()
    def counts_add_up(self):
        counts = self.pool.counts()
        assert counts.free + counts.held + counts.cached + counts.leased + counts.quarantined == TOTAL
        assert 0 <= counts.pinned <= counts.cached
        held = {
            block
            for owner in self.owners.values()
            for block in (owner.blocks if owner.kind is Holder.HELD else owner.blocks[: owner.shared])
        } - {GONE}
        assert counts.held == len(held)
        for kind, found in ((Holder.LEASED, counts.leased), (Holder.QUARANTINED, counts.quarantined)):
            own = [o.blocks[o.shared :] for o in self.owners.values() if o.kind is kind]
            assert found == sum(map(len, own))

    def teardown(self):
        for key in self.owners:
            self.pool.free(key)
        self.pool.expire(9.0)
        counts = self.pool.counts()
        assert counts.free + counts.cached == TOTAL and counts.pinned == 0
        self.pool.hold("all", TOTAL, TOTAL)  # all that is cached gives way
        assert self.pool.counts().held == TOTAL


class WindowedLedger(Ledger):
    """A token sees two full blocks before its own."""

    span = 2


TestLedger, TestWindowedLedger = Ledger.TestCase, WindowedLedger.TestCase
for case in (TestLedger, TestWindowedLedger):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run(pool: BlockPool, path: Path, until: float = 0.0) -> int:
    """A sequence comes, is computed and goes; how many of its blocks were cached."""
    known = pool.find(names(path))
    pool.hold("run", len(path), len(path), known)
    pool.free("run", names(path), until)
    return len(known)


@given(st.lists(PATHS, max_size=60), st.integers(12, 30))
def test_the_least_recently_used_leaf_goes_first(paths, total):
    """Against a plain account: a set of paths with the time of their last use."""
    pool = BlockPool(total)
    last: dict[Path, int] = {}
    for now, path in enumerate(paths):
        prefixes = [path[: end + 1] for end in range(len(path))]
        hits = next((place for place, one in enumerate(prefixes) if one not in last), len(path))
        assert run(pool, path) == hits
        while len(set(last) | set(prefixes)) > total:
            leaves = [
                one
                for one in last
                if one not in prefixes and not any(len(o) > len(one) and o[: len(one)] == one for o in last)
            ]
            oldest = min(last[one] for one in leaves)
            del last[next(one for one in leaves if last[one] == oldest)]
        last |= dict.fromkeys(prefixes, now)


def test_what_was_asked_to_be_kept_goes_last_and_the_first_to_expire_before_the_rest():
    pool = BlockPool(8)
    run(pool, (1, 1), until=20.0)
    run(pool, (2, 2), until=10.0)
    run(pool, (3, 3))
    run(pool, (4, 4))
    assert pool.counts().pinned == 4
    run(pool, (5, 5, 5, 5))
    assert [len(pool.find(names((n, n)))) for n in (1, 2, 3, 4)] == [2, 2, 0, 0]
    pool.hold("large", 6, 6)
    assert [len(pool.find(names((n, n)))) for n in (1, 2)] == [2, 0]


def test_a_pin_that_has_expired_is_worth_no_more_than_its_last_use():
    pool = BlockPool(4)
    run(pool, (1, 1), until=10.0)
    run(pool, (2, 2))
    pool.expire(9.9)
    assert pool.counts().pinned == 2
    pool.expire(10.0)
    assert pool.counts().pinned == 0
    run(pool, (3, 3))
    assert [len(pool.find(names((n, n)))) for n in (1, 2)] == [0, 2]


def test_nothing_is_cached_where_that_is_off():
    pool = BlockPool(4, caches=False)
    run(pool, (1, 2))
    assert pool.find(names((1, 2))) == [] and pool.counts().free == 4


def test_of_two_that_computed_the_same_one_copy_stays_and_the_rest_of_both():
    pool = BlockPool(12)
    for key, path in (("a", (1, 2, 3)), ("b", (1, 2, 4))):
        pool.hold(key, 3, 3)
        pool.publish(key, names(path))
    pool.free("b", names((1, 2, 4)))
    assert pool.counts().cached == 1, "the last of b, behind what a still holds"
    pool.free("a", names((1, 2, 3)))
    assert pool.counts().cached == 4
    assert len(pool.find(names((1, 2, 4)))) == len(pool.find(names((1, 2, 3)))) == 3


def test_blocks_are_freed_once():
    pool = BlockPool(4)
    pool.hold("a", 2, 2)
    pool.free("a")
    with pytest.raises(KeyError):
        pool.free("a")


def test_only_a_lease_is_adopted_or_quarantined():
    pool = BlockPool(4)
    pool.hold("a", 2, 2)
    with pytest.raises(AssertionError):
        pool.adopt("a", 2)
    with pytest.raises(AssertionError):
        pool.quarantine("a")


def test_a_lease_is_not_shared_before_it_is_adopted():
    pool = BlockPool(4)
    pool.lease("a", 2, 2)
    with pytest.raises(AssertionError):
        pool.publish("a", names((1,)))


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


def runs(table: list[int]) -> int:
    return 1 + sum(after != before + 1 for before, after in zip(table, table[1:], strict=False))


def test_sequences_that_grow_in_turns_where_all_is_cached_have_few_runs():
    pool = BlockPool(256)
    for number in range(8):
        run(pool, tuple(number * 100 + place for place in range(32)))
    assert pool.counts().free == 0
    for key in "abcd":
        pool.hold(key, 1, 48)
    for count in range(2, 49):
        for key in "abcd":
            pool.grow(key, count)
    assert all(runs(list(pool.table(key))) <= 8 for key in "abcd")  # of 48 blocks


def test_a_next_turn_goes_on_right_behind_the_last_one():
    pool = BlockPool(64)
    pool.hold("wall", 5, 5)
    run(pool, (1, 2, 3))
    known = pool.find(names((1, 2, 3)))
    pool.hold("next", 9, 9, known)
    assert runs(list(pool.table("next"))) == 1


def test_the_room_that_one_sequence_grows_into_is_lent_where_nothing_else_is_free():
    pool = BlockPool(8)
    pool.hold("a", 1, 8)
    pool.hold("b", 7, 7)
    assert len(pool.table("b")) == 7
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
    assert runs(list(pool.table("a"))) <= 2
