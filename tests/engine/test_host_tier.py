"""Two tiers of blocks and the copies between them: right content, only what is new, and nothing touched too early."""

import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from penstock.engine.blocks import GONE, BlockPool
from penstock.engine.cache import KVCache
from penstock.engine.host_tier import HostTier, Swap
from penstock.engine.layout import CacheLayout
from penstock.engine.swapper import GROUP, Swapper

DEVICE, HOST = 24, 16

Path = tuple[int, ...]
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=10).map(tuple)


def names(path: Path) -> list[bytes]:
    return [repr(path[: end + 1]).encode() for end in range(len(path))]


class Tiers(RuleBasedStateMachine):
    """Beside the ledgers, what was last written into each block of both tiers; copies end late, and some fail."""

    running = Bundle("running")
    span: int | None = None

    def __init__(self):
        super().__init__()
        self.device = BlockPool(DEVICE, span=self.span)
        self.tier = HostTier(self.device, HOST)
        self.paths: dict[int, Path] = {}
        self.waiting: dict[int, tuple[Path, int]] = {}
        self.content: dict[str, dict[int, Path]] = {"device": {}, "host": {}}
        self.under_way: list[Swap] = []
        self.keys = 0
        self.returned = 0

    @rule(target=running, path=PATHS, fetches=st.booleans())
    def begin(self, path, fetches):
        self.keys += 1
        known = self.device.find(names(path))
        if fetches and self.tier.fetch(names(path), known, len(path), self.keys):
            self.waiting[self.keys] = path, len(known)
            self._take()
            return multiple()
        counts = self.device.counts()
        if len(path) - len(known) > counts.free + max(0, counts.cached - len(known)):
            return multiple()
        self.device.hold(self.keys, len(path), len(path), known)
        return self._go_on(self.keys, path, len(known))

    def _go_on(self, key: int, path: Path, known: int):
        """Compute the rest, check what was there, and let go of what a window has passed."""
        table = self.device.table(key)
        for place in range(self.device.gone(key), len(path)):
            if place < known:
                assert self.content["device"][table[place]] == path[: place + 1]
            self.content["device"][table[place]] = path[: place + 1]
        self.paths[key] = path
        self.device.publish(key, names(path))
        self.device.shed(key, self.device.behind(len(path)))
        return key

    @rule(key=consumes(running), until=st.sampled_from((0.0, 5.0)))
    def leave(self, key, until):
        self.tier.leave(key, names(self.paths.pop(key)), until)
        assert not self.device.holds(key)
        self._take()

    def _take(self):
        for swap in self.tier.take_swaps():
            assert len(swap.device_ids) == len(swap.host_ids) > 0
            self.under_way.append(swap)

    @rule(target=running, place=st.integers(0, 50), ok=st.sampled_from((True, True, True, False)))
    def a_copy_ends(self, place, ok):
        if not self.under_way:
            return multiple()
        swap = self.under_way.pop(place % len(self.under_way))
        there, here = ("device", "host") if swap.out else ("host", "device")
        ends = (swap.device_ids, swap.host_ids) if swap.out else (swap.host_ids, swap.device_ids)
        ids = list(zip(*ends, strict=True))
        for number, (source, target) in enumerate(ids):
            if ok or number % 2:
                self.content[here][target] = self.content[there][source]
            else:
                self.content[here][target] = (-1,)
        self.returned += len(ids) if ok and not swap.out else 0
        arrival = self.tier.ended(swap.number, ok)
        if arrival is None:
            return multiple()
        key = arrival.waiting
        path, known = self.waiting.pop(key)
        if not ok or self.device.counts().free + self.device.counts().cached < len(path):
            self.device.free(arrival.key, arrival.names)
            return multiple()
        assert known < len(arrival.names) and arrival.names == names(path)[: len(arrival.names)]
        self.device.rename(arrival.key, key)
        self.device.grow(key, len(path))
        return self._go_on(key, path, len(arrival.names))

    @invariant()
    def what_a_copy_touches_is_held_by_it(self):
        for swap in self.under_way:
            held = set(self.device.table(("swap", swap.number)))
            assert set(swap.device_ids) <= held and set(swap.host_ids) <= set(
                self.tier.host.table(swap.number)
            )

    @invariant()
    def what_came_back_whole_is_counted(self):
        assert self.tier.returned_blocks == self.returned

    @invariant()
    def what_is_known_has_its_content(self):
        for path in [*self.paths.values(), (0, 1, 0), (1, 1), (0, 0, 0, 0)]:
            for pool, tier in ((self.device, "device"), (self.tier.host, "host")):
                for place, block in enumerate(pool.find(names(path))):
                    assert block == GONE or self.content[tier][block] == path[: place + 1]

    def teardown(self):
        while self.under_way:
            swap = self.under_way.pop()
            arrival = self.tier.ended(swap.number, False)
            if arrival is not None:
                self.device.free(arrival.key, arrival.names)
        for key in self.paths:
            self.device.free(key)
        assert self.tier.idle
        for pool in (self.device, self.tier.host):
            counts = pool.counts()
            assert counts.free + counts.cached == counts.total


class WindowedTiers(Tiers):
    """A token sees two full blocks before its own."""

    span = 2


TestTiers, TestWindowedTiers = Tiers.TestCase, WindowedTiers.TestCase
for case in (TestTiers, TestWindowedTiers):
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_the_second_time_only_what_is_new_is_copied():
    device = BlockPool(8)
    tier = HostTier(device, 16)
    for path, new in (((1, 2, 3), 3), ((1, 2, 3, 4, 5), 2), ((1, 2, 3, 4, 5), 0)):
        device.hold("s", len(path), len(path), device.find(names(path)))
        tier.leave("s", names(path), 0.0)
        swaps = tier.take_swaps()
        assert sum(len(swap.host_ids) for swap in swaps) == new and tier.leaving is (new > 0)
        for swap in swaps:
            tier.ended(swap.number, True)


def test_what_comes_back_in_vain_begins_anew_where_a_window_has_passed_the_rest():
    device = BlockPool(8, span=2)
    tier, path = HostTier(device, 16), (1, 2, 3, 4, 5)
    device.hold("s", 5, 5)
    device.publish("s", names(path))
    device.shed("s", 3)
    tier.leave("s", names(path), 0.0)
    [swap] = tier.take_swaps()
    assert len(swap.device_ids) == 2
    tier.ended(swap.number, True)
    device.hold("all", 8, 8)  # evicts what is cached
    device.free("all")
    assert tier.fetch(names(path), [], 5, "s")
    [swap] = tier.take_swaps()
    arrival = tier.ended(swap.number, False)
    assert arrival is not None and arrival.names == [] and device.gone(arrival.key) == 0


def test_a_failed_copy_leaves_nothing_to_be_found():
    device = BlockPool(8)
    tier = HostTier(device, 16)
    device.hold("s", 3, 3)
    tier.leave("s", names((1, 2, 3)), 0.0)
    [swap] = tier.take_swaps()
    tier.ended(swap.number, False)
    assert tier.lacks(names((1, 2, 3))) == 3
    assert len(device.find(names((1, 2, 3)))) == 3, "what the device has is as good as before"


def test_what_finds_no_room_in_host_memory_leaves_at_once():
    device = BlockPool(8)
    tier = HostTier(device, 2)
    device.hold("s", 3, 3)
    tier.leave("s", names((1, 2, 3)), 0.0)
    assert not tier.take_swaps() and tier.idle and device.counts().cached == 3


@pytest.mark.parametrize("count", [1, GROUP, GROUP + 1, 3 * GROUP])
def test_blocks_come_back_as_they_went(count):
    shape = {"layers": 2, "block_size": 4, "kv_heads": 2, "head_dim": 8, "dtype": "bfloat16"}
    cache, host = (KVCache(CacheLayout(blocks=blocks, **shape), torch.device("cpu")) for blocks in (256, 300))
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape))
    before = [layer.clone() for layer in cache.layers]
    queue, ended = [], []
    swapper = Swapper(cache, host, queue.append, lambda number, ok: ended.append((number, ok)))
    draw = random.Random(count)
    source, away, back = (tuple(draw.sample(range(blocks), count)) for blocks in (256, 300, 256))
    for number, swap in enumerate((Swap(0, True, source, away), Swap(1, False, back, away))):
        swapper.swap(swap)
        while queue:
            assert len(ended) == number
            queue.pop(0)()
        assert ended[-1] == (number, True)
    for layer, was in zip(cache.layers, before, strict=True):
        assert torch.equal(layer[:, list(back)], was[:, list(source)])


def test_a_copy_that_breaks_says_so():
    shape = {"layers": 1, "block_size": 4, "kv_heads": 1, "head_dim": 8, "dtype": "float32"}
    cache, host = (KVCache(CacheLayout(blocks=4, **shape), torch.device("cpu")) for _ in "ab")
    queue, ended = [], []
    swapper = Swapper(cache, host, queue.append, lambda number, ok: ended.append((number, ok)))
    swapper.swap(Swap(7, True, (0, 99), (0, 1)))
    queue.pop(0)()
    assert ended == [(7, False)] and not queue
