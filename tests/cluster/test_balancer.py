"""The controller's tick: what the policies want is asked of the right party, and what becomes of it is heeded."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc

from penstock.cluster.balancer import Balancer
from penstock.cluster.config import ClusterConfig, Config
from penstock.cluster.operation import Phase, Progress
from penstock.cluster.refusal import Refused
from penstock.cluster.routers import AttachedRouter, MoveResult
from penstock.policy.autoscale import AutoscaleConfig, PoolLimits
from penstock.policy.journal import Journal
from penstock.policy.state import InstanceView, LoadView
from penstock.proto import router_pb2 as pb

FULL = LoadView(
    total_blocks=100, held_blocks=98, free_blocks=2, peak_blocks=110, running=4, decoding=4, decode_tokens=1500,
    decode_slots=8, block_size=16, step_s=0.01,
)  # fmt: skip
EMPTY = LoadView(total_blocks=100, free_blocks=100, decode_slots=8, block_size=16)
MIDDLE = replace(EMPTY, free_blocks=20, held_blocks=80)
CROWDED = LoadView(total_blocks=100, free_blocks=100, prefill_tokens=64, queued_tokens=64_000, block_size=16)


def view(name: str, load: LoadView, pool: str = "decode") -> InstanceView:
    return InstanceView(name=name, life=1, address=name, pool=pool, load=load)


def held(number: int, **changed) -> pb.HeldSession:
    asked = {"owner": "decode-0", "owner_life": 1, "prompt_tokens": 300, "emitted_tokens": 60}
    asked |= {"remaining_tokens": 200, "movable": True, **changed}
    return pb.HeldSession(session=f"s{number}#0", request_id=f"s{number}", **asked)


class Here:
    """All that a balancer speaks to."""

    def __init__(self, views: list[InstanceView], sessions: list[pb.HeldSession], **cluster):
        self.listed = views
        hello = pb.RouterHello(name="router-0")
        self.attached = [AttachedRouter(hello, {held.session: held for held in sessions})]
        self.asked: list[tuple[str, str, str]] = []
        self.modes: list[pb.MoveMode] = []
        self.done = True
        self.changes: list[tuple] = []
        config = Config(cluster=ClusterConfig(**cluster))
        self.journal = Journal("controller", time.time)
        self.balancer = Balancer(self, self, self, config, self.journal)  # type: ignore[arg-type]

    def views(self, now: float) -> list[InstanceView]:
        return self.listed

    async def move(self, router, session, destination, mode, reason, timeout_s) -> MoveResult:
        self.asked.append((session, destination, reason))
        self.modes.append(mode)
        return MoveResult(self.done, "", 0.1, "decode-0")

    async def grow(self, pool: str) -> AsyncIterator[Progress]:
        self.changes.append(("grow", pool))
        yield Progress("decode-9", Phase.SERVING)

    async def flip(self, name: str, pool: str) -> AsyncIterator[Progress]:
        self.changes.append(("flip", name, pool))
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "it may not")
        yield

    def ticks(self, *times: float) -> None:
        async def ticked() -> None:
            for now in times:
                self.balancer.tick(now)
                await asyncio.sleep(0)
                await asyncio.gather(*self.balancer._tasks)

        asyncio.run(ticked())


def test_a_full_instance_is_relieved_and_the_move_has_its_reason():
    here = Here([view("decode-0", FULL), view("decode-1", EMPTY)], [held(number) for number in range(4)])
    here.ticks(1.0)
    (session, destination, reason) = here.asked[0]
    assert (destination, reason) == ("decode-1", "balance")
    assert here.journal.of(session)[0].what == "move_planned"
    here.ticks(1.2)
    assert session not in [asked for asked, _, _ in here.asked[1:]], "it is under way"


def test_one_that_waits_is_begun_elsewhere_and_nothing_of_it_is_copied():
    crowded = replace(FULL, waiting=1, head_blocks=20, queued_tokens=300, prefill_tokens=64)
    here = Here(
        [view("decode-0", crowded), view("decode-1", replace(EMPTY, prefill_tokens=64))],
        [held(number) for number in range(4)] + [held(4, emitted_tokens=0, waits=True)],
    )
    here.ticks(1.0)
    assert (here.asked[0], here.modes[0]) == (("s4#0", "decode-1", "start"), pb.MOVE_MODE_UNBEGUN)
    assert set(here.modes[1:]) <= {pb.MOVE_MODE_LIVE}


def test_what_may_not_move_and_what_drains_is_left_alone():
    stuck = [held(number, movable=False) for number in range(4)]
    here = Here([view("decode-0", FULL), view("decode-1", EMPTY)], stuck)
    drained = Here([replace(view("decode-0", FULL), draining=True), view("decode-1", EMPTY)], [held(0)])
    off = Here([view("decode-0", FULL), view("decode-1", EMPTY)], [held(0)], migrate=False)
    older = Here([view("decode-0", FULL), view("decode-1", EMPTY)], [held(0, owner_life=7)])
    for one in (here, drained, off, older):
        one.ticks(1.0)
        assert one.asked == []


def test_a_move_that_came_to_nothing_rests_before_it_is_asked_again():
    here = Here([view("decode-0", FULL), view("decode-1", EMPTY)], [held(0)])
    here.done = False
    here.ticks(1.0, 1.2, 1.4)
    assert len(here.asked) == 1
    here.ticks(30.0)
    assert len(here.asked) == 2


def pools(**config) -> Here:
    limits = {"prefill": PoolLimits(least=1, most=3), "decode": PoolLimits(least=1, most=4)}
    autoscale = AutoscaleConfig(limits=limits, short_s=2.0, idle_s=100.0, cooldown_s=8.0, **config)
    busy = [
        view("prefill-0", CROWDED, "prefill"),
        view("decode-0", MIDDLE),
    ]
    return Here(busy, [], autoscale=autoscale)


def test_a_pool_that_is_short_for_long_enough_grows_once():
    here = pools()
    here.ticks(*range(8))
    assert here.changes == [], "an earlier controller may have grown it just now"
    here.ticks(*range(8, 16))
    assert here.changes == [("grow", "prefill")]
    asked, done = here.balancer.changes
    assert (asked.session, asked.what, asked.figures["prefill_queued_steps"]) == ("prefill", "grow", 1000.0)
    assert (done.what, done.figures["instance"]) == ("grow_done", "decode-9")


def test_an_idle_pool_gives_an_instance_to_a_short_one_and_a_refusal_ends_nothing():
    here = pools()
    here.listed = [here.listed[0], *(view(f"decode-{number}", EMPTY) for number in range(3))]
    here.ticks(*range(12))
    assert here.changes == [("flip", "decode-2", "prefill")]
    assert [change.what for change in here.balancer.changes] == ["flip", "flip_failed"]


def test_a_pool_whose_requests_miss_their_slo_grows_though_it_has_room():
    here = pools()
    here.listed = [
        view("prefill-0", EMPTY, "prefill"),
        view("decode-0", replace(EMPTY, free_blocks=20, held_blocks=80)),
    ]
    for second in range(12):
        counts = {"first_tokens": 10 * second, "first_tokens_in_time": 10 * second, "outputs": 10 * second}
        here.attached[0].attainment = pb.Attainment(**counts, outputs_in_time=4 * second)
        here.ticks(second)
    assert here.changes == [("grow", "decode")]


def test_of_mixed_instances_the_worse_of_both_attainments_counts():
    limits = {"mixed": PoolLimits(most=3)}
    mixed = AutoscaleConfig(limits=limits, short_s=2.0, cooldown_s=0.0)
    here = Here([view("mixed-0", EMPTY, "mixed")], [], autoscale=mixed)
    for second in range(4):
        counts = {"first_tokens": 9 * second, "first_tokens_in_time": 9 * second, "outputs": 9 * second}
        here.attached[0].attainment = pb.Attainment(**counts, outputs_in_time=0)
        here.ticks(second)
    assert here.changes[0] == ("grow", "mixed")


def test_requests_that_wait_at_the_routers_grow_the_pool_that_they_wait_for():
    here = pools()
    here.listed = [replace(one, load=replace(MIDDLE, prefill_tokens=64)) for one in here.listed]
    here.attached[0].waiting = pb.Waiting(decode=3)
    here.ticks(*range(12))
    assert here.changes == [("grow", "decode")]


def test_without_a_configuration_no_pool_changes():
    here = Here([view("prefill-0", CROWDED, "prefill")], [])
    here.ticks(*range(10))
    assert here.changes == []
