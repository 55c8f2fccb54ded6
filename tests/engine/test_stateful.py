"""Pools, schedulers, engines, seats and sessions together: whatever hypothesis does to them, laws 2 and 3 hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy_model import VOCABULARY, answer
from toy_world import BLOCK, CONTEXT, Clock, Instance, World

from penstock.engine import engine as engine_module
from penstock.engine.blocks import Holder
from penstock.handover import effects as fx
from penstock.handover.config import HandoverConfig
from penstock.handover.values import Context, MoveMode, SamplingParams
from penstock.policy.admission import RULES
from penstock.policy.batching import Budget

CONFIG = HandoverConfig(stage_blocks=2, final_blocks=1, grace_s=3.0, reserve_wait_s=0.5, lease_s=1.0)
ROLES = (
    {"prefill": Budget(16, 0), "decode-0": Budget(0, 8), "decode-1": Budget(0, 8)},
    {"a": Budget(12, 6), "b": Budget(12, 6), "c": Budget(12, 6)},
    {"a": Budget(16, 2), "b": Budget(0, 2), "c": Budget(0, 2)},
)
TINY = CONTEXT // BLOCK
"""Blocks of the longest sequence: two of half that length do not fit beside a third."""
PLACES = st.integers(0, 99)
"""Which of those that there are."""


class Cluster(RuleBasedStateMachine):
    """A toy cluster whose every event is chosen; at the end all is left to go well, and must."""

    @initialize(
        seed=st.integers(0, 2**16),
        roles=st.sampled_from(ROLES),
        blocks=st.sampled_from((TINY, TINY, 3 * TINY)),
        in_place=st.booleans(),
        admission=st.sampled_from((*RULES, "aggressive")),
        host_blocks=st.sampled_from((0, 0, 30)),
        window=st.sampled_from((None, None, 2 * BLOCK + 1)),
        overlap=st.booleans(),
    )
    def build(self, seed, roles, blocks, in_place, admission, host_blocks, window, overlap):
        self.patch = pytest.MonkeyPatch()
        clock = Clock()
        self.patch.setattr(engine_module, "time", clock)
        self.world = World(
            seed, roles, CONFIG, clock, blocks, in_place, 0.0, admission, host_blocks, window, overlap
        )
        self.right: dict[str, list[int]] = {}
        self.checked: dict[str, int] = {}

    def teardown(self):
        if hasattr(self, "world"):
            try:
                self.all_ends_well()
            finally:
                self.patch.undo()

    def all_ends_well(self):
        world = self.world
        for instance in world.living:
            instance.hung = instance.draining = False
        for _ in range(20):
            world.settle(2.0)
            if world.over:
                break
            for key in world.sessions:
                world.nudge(key)
        for key, stream in world.sessions.items():
            assert stream.session.closed, f"{key} never ended: {len(stream.ids)} of {len(self.right[key])}"
            assert stream.cancelled or stream.ids == self.right[key], key
        for instance in world.living:
            assert instance.idle, f"{instance.me} holds {instance.pool.counts()}"

    # ---- what is asked of it

    @rule(
        seed=st.integers(0, 999),
        prompt=st.sampled_from((1, BLOCK, BLOCK + 1, 17, 40, 60)),
        most=st.sampled_from((1, 2, BLOCK, 60, 100)),
        shared=st.booleans(),
        count=st.integers(1, 4),
    )
    def start(self, seed, prompt, most, shared, count):
        for number in range(seed, seed + count):
            key = f"s{len(self.right)}"
            tokens = tuple((at if shared else at * number + seed) % VOCABULARY for at in range(prompt))
            context = Context(
                tokens, (), SamplingParams(seed=number, max_tokens=most, ignore_eos=number % 4 > 0)
            )
            self.right[key], self.checked[key] = answer(context, CONTEXT, self.world.window), 0
            self.world.start(key, context)

    @precondition(lambda self: self.open)
    @rule(which=PLACES, to=PLACES, mode=st.sampled_from(MoveMode))
    def move(self, which, to, mode):
        there = pick(self.world.decoders, to)
        self.world.tell(
            self.world.sessions[pick(self.open, which)], fx.MoveAsked(self.world.address(there), mode)
        )

    @precondition(lambda self: self.open)
    @rule(which=PLACES, cancels=st.booleans())
    def leave(self, which, cancels):
        """A client cancels; or its router dies, and it goes to another."""
        key = pick(self.open, which)
        self.world.cancel(key) if cancels else self.world.resume(key)

    @rule(which=PLACES, how=st.sampled_from(("kill", "hang", "drain")))
    def strike(self, which, how):
        instance = pick(self.world.living, which)
        if how == "kill":
            self.world.kill(instance.me.instance)
        elif how == "hang":
            instance.hung = not instance.hung
        elif self.may_drain(instance):
            instance.draining = True

    def may_drain(self, instance: Instance) -> bool:
        """Somebody is left to prefill, and another to decode."""
        first = next(iter(self.world.instances))
        others = [one for one in self.world.decoders if one is not instance and one.me.instance != first]
        return instance.me.instance != first and bool(others)

    # ---- what happens by itself

    @rule(rounds=st.integers(1, 60), copies=st.booleans())
    def go_on(self, rounds, copies):
        """Everything goes well for a while, but that copies may take longer."""
        for _ in range(rounds):
            for ends in self.waiting:
                while self.world.streams[ends]:
                    self.world.arrive(ends)
            if copies:
                self.world.copy(), self.world.receive(), self.world.swap()
            self.world.drain()
            for instance in self.world.living:
                self.world._round(instance)
            self.world.pass_time(0.01)

    @rule(which=PLACES, rounds=st.integers(1, 8))
    def step(self, which, rounds):
        for _ in range(rounds):
            self.world._round(pick(self.world.living, which))

    @precondition(lambda self: self.waiting)
    @rule(
        which=PLACES, place=st.sampled_from((0, 0, 0, 1, 5)), how=st.sampled_from(("once", "twice", "never"))
    )
    def deliver(self, which, place, how):
        """A message arrives, perhaps before earlier ones, perhaps twice, or never; the others are delayed."""
        ends = pick(self.waiting, which)
        place = min(place, len(self.world.streams[ends]) - 1)
        if how == "never":
            del self.world.streams[ends][place]
        else:
            self.world.arrive(ends, place, how == "twice")

    @precondition(lambda self: self.world.copies or self.world.receives or self.world.swaps)
    @rule(which=PLACES, fails=st.booleans())
    def end_a_copy(self, which, fails):
        world = self.world
        ends = (
            (world.copies, world.end_copy),
            (world.receives, world.end_receive),
            (world.swaps, world.end_swap),
        )
        under_way, end = pick([pair for pair in ends if pair[0]], which)
        end(which % len(under_way), fails)

    @rule(seconds=st.sampled_from((0.05, 0.6, 1.2, 2.5, 4.0)))
    def time_flies(self, seconds):
        self.world.pass_time(seconds)

    @precondition(lambda self: self.timers)
    @rule(which=PLACES)
    def a_timer_fires_early(self, which):
        instance, clock, lease = pick(self.timers, which)
        instance.engine.post(lease.session, fx.Timeout(clock, lease))

    @precondition(lambda self: self.open)
    @rule(which=PLACES, nudge=st.booleans())
    def a_router_loses_patience(self, which, nudge):
        stream = self.world.sessions[pick(self.open, which)]
        self.world.tell(stream, fx.Nudge() if nudge else fx.Silent())

    # ---- laws

    @invariant()
    def every_token_comes_once_and_in_order(self):
        for key, stream in self.world.sessions.items() if hasattr(self, "world") else ():
            checked, self.checked[key] = self.checked[key], len(stream.got)
            assert stream.ids[checked:] == self.right[key][checked : len(stream.got)], key

    @invariant()
    def every_block_has_a_known_holder(self):
        for instance in self.world.living if hasattr(self, "world") else ():
            check_ledger(instance)

    # ---- what there is to choose from

    @property
    def open(self) -> list[str]:
        return [key for key, stream in self.world.sessions.items() if not stream.session.closed]

    @property
    def waiting(self) -> list[tuple]:
        return [ends for ends, held in self.world.streams.items() if held]

    @property
    def timers(self) -> list[tuple]:
        return [
            (instance, *timer)
            for instance in self.world.living
            for timer in instance.engine._timers._latest
            if not instance.hung
        ]


def pick(among: list, which: int):
    return among[which % len(among)]


def check_ledger(instance: Instance) -> None:
    """Each block is in tables, or cached, or free, as the pool counts it."""
    pool = instance.pool
    counted = np.bincount(pool._kind, minlength=len(Holder))
    assert {holder: counted[holder] for holder in Holder} == pool._counts
    assert sum(pool._counts.values()) == pool.total
    in_tables = {block for table in pool._tables.values() for block in table.blocks}
    for block in range(pool.total):
        taken = pool._kind[block] in (Holder.HELD, Holder.LEASED, Holder.QUARANTINED)
        assert taken == (block in in_tables), f"block {block} of {instance.me}"


QUICK = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)

TestCluster = Cluster.TestCase
TestCluster.settings = QUICK


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestClusterLonger(Cluster.TestCase):
    settings = settings(QUICK, max_examples=3000, stateful_step_count=100)
