"""Copies between instances under one turn each: nothing locks, nothing is left hanging, and every copy is answered."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest
import torch
from bare_router import until

from penstock.engine.cache import KVCache
from penstock.engine.layout import CacheLayout
from penstock.engine.local import LocalWindow
from penstock.engine.memory import SharedMemory
from penstock.engine.transfers import Transfers
from penstock.handover.config import HandoverConfig
from penstock.handover.effects import Received, Written
from penstock.handover.frames import PairOffer, Turn, TurnKind
from penstock.handover.values import Epoch, Incarnation, LeaseKey, Stage, Window
from penstock.policy.journal import Journal

CONFIG = HandoverConfig(transport_s=4.0, heartbeat_s=0.1)
PATIENT = HandoverConfig(transport_s=4.0, heartbeat_s=0.1, lease_s=400.0)
"""Copies rest for as long as they are told to."""
LAYOUT = CacheLayout(layers=2, blocks=64, block_size=4, kv_heads=1, head_dim=8, dtype="float32")


class End:
    """One instance: a cache, its copies, and what an engine would answer to the headers that come in."""

    def __init__(self, net: Net, name: str, config: HandoverConfig):
        self.net, self.me = net, Incarnation(name, 1)
        self.memory = SharedMemory.create(LAYOUT.total_bytes)
        self.cache = KVCache(LAYOUT, torch.device("cpu"), self.memory.buffer)
        for layer in self.cache.layers:
            layer.fill_(ord(name[0]))
        self.transfers = Transfers(
            *(self.me, self.cache, config, "127.0.0.1", self._tell, self._post),
            stepping=lambda: False,
            journal=Journal(name, time.time),
        )
        self.posted: dict[str, asyncio.Future] = defaultdict(asyncio.get_running_loop().create_future)
        self.loop = asyncio.get_running_loop()
        self.declines = False
        self.deaf = False

    def write(self, to: End, session: str, count: int, urgent: bool) -> asyncio.Future:
        """Write blocks 0 and on in place; the future is `Written`."""
        stage = Stage(LeaseKey(session, Epoch(1, 1)), self.me, to.me, 0, count)
        self.transfers.write_in_place(stage, window(to), range(count), range(count), urgent)
        return self.posted[f"written {session}"]

    def _tell(self, peer: Incarnation, frame) -> None:
        self.net.carry(self.me, peer, frame)

    def _post(self, session: str, event) -> None:
        kind = "written" if isinstance(event, Written) else "received"
        self.loop.call_soon_threadsafe(self._resolve, f"{kind} {session}", event)

    def _resolve(self, key: str, event) -> None:
        assert not self.posted[key].done(), f"{key} is answered once"
        self.posted[key].set_result(event)

    def hear(self, sender: Incarnation, frame) -> None:
        if self.deaf:
            return
        if isinstance(frame, Turn | PairOffer):
            self.transfers.hear(sender, frame)
        elif self.declines:
            self.transfers.decline(frame)
        else:
            self.transfers.receive_blocks(frame, range(32, 32 + frame.count))

    def send(self, to: End, session: str, count: int = 8, urgent: bool = False) -> asyncio.Future:
        """Send blocks 0 and on; the future is `Written`."""
        stage = Stage(LeaseKey(session, Epoch(1, 1)), self.me, to.me, 0, count)
        self.transfers.send_blocks(stage, range(count), urgent)
        return self.posted[f"written {session}"]


class Net:
    """Ordered streams between the ends, with a little delay."""

    def __init__(self) -> None:
        self.ends: dict[Incarnation, End] = {}
        self.lost: set[type] = set()

    def carry(self, sender: Incarnation, receiver: Incarnation, frame) -> None:
        if type(frame) not in self.lost and receiver in self.ends:
            asyncio.get_running_loop().call_later(0.0005, self.ends[receiver].hear, sender, frame)


@asynccontextmanager
async def ends(*names: str, config: HandoverConfig = CONFIG):
    net = Net()
    found = [End(net, name, config) for name in names]
    net.ends = {end.me: end for end in found}
    try:
        yield net, found
        for end in found:
            await until(lambda end=end: not end.transfers._answers and end.transfers._turn.try_take())
    finally:
        await asyncio.gather(*(end.transfers.close() for end in found))
        for end in found:
            end.memory.close()


async def ok(answer: asyncio.Future, seconds: float = 20.0) -> bool:
    async with asyncio.timeout(seconds):
        return (await asyncio.shield(answer)).ok


def test_blocks_arrive_whole_and_both_ends_hear_of_it():
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            assert await ok(a.send(b, "s")) and await ok(b.posted["received s"])
            assert isinstance(b.posted["received s"].result(), Received)
            for layer in b.cache.layers:
                assert (layer[:, 32:40] == ord("a")).all() and (layer[:, 40:] == ord("b")).all()

    asyncio.run(main())


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_queues_of_senders_to_each_other_do_not_lock(names):
    async def main():
        async with ends(*names, config=HandoverConfig(transport_s=60.0)) as (_, all_ends):
            ring = [*zip(all_ends, all_ends[1:] + all_ends[:1], strict=True)]
            sent = [one.send(to, f"{one.me.instance}{n}") for n in range(12) for one, to in ring]
            assert all([await ok(answer, 60.0) for answer in sent])
            for one, to in ring:
                for n in range(12):
                    assert await ok(to.posted[f"received {one.me.instance}{n}"])

    asyncio.run(main())


def test_a_peer_that_says_nothing_delays_nobody_else():
    async def main():
        async with ends("a", "b", "c") as (_, (a, b, c)):
            b.deaf = True
            silent = [a.send(b, f"silent{n}") for n in range(3)]
            heard = [a.send(c, f"heard{n}") for n in range(6)]
            back = c.send(a, "back")
            assert all([await ok(answer) for answer in [*heard, back]])
            assert not any(answer.done() for answer in silent)
            assert not any([await ok(answer) for answer in silent])

    asyncio.run(main())


def test_a_copy_that_nobody_wants_ends_at_once_and_the_next_succeeds():
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            assert await ok(a.send(b, "first"))
            await b.posted["received first"]
            b.declines = True
            before = asyncio.get_running_loop().time()
            await a.send(b, "declined")  # gloo may have taken it whole before the pair broke
            assert asyncio.get_running_loop().time() - before < CONFIG.transport_s
            b.declines = False
            await until_ok(a, b)

    asyncio.run(main())


async def until_ok(a: End, b: End) -> None:
    """A pair that broke unnoticed costs one copy; the one after it succeeds."""
    results = []
    for n in range(3):
        written = await ok(a.send(b, f"again{n}"))
        received = written and await ok(b.posted[f"received again{n}"])
        results.append(received)
    assert results[-1], results


@pytest.mark.parametrize("lost", [Stage, PairOffer, Turn])
def test_lost_messages_cost_one_copy_and_no_turn(lost):
    async def main():
        config = HandoverConfig(transport_s=0.7, heartbeat_s=0.1)
        async with ends("a", "b", config=config) as (net, (a, b)):
            if lost is Stage:
                assert await ok(a.send(b, "first"))
                await b.posted["received first"]
            net.lost.add(lost)
            await ok(a.send(b, "lost", 64))
            net.lost.clear()
            await asyncio.sleep(config.transport_s)
            await until_ok(a, b)
            await asyncio.sleep(config.transport_s)

    asyncio.run(main())


def test_a_header_without_blocks_needs_no_pair():
    async def main():
        async with ends("a", "b") as (net, (a, b)):
            b.declines = True  # as the engine does: nothing is to be received
            net.lost.add(PairOffer)
            assert await ok(a.send(b, "s", 0))
            net.lost.clear()
            b.declines = False
            assert await ok(a.send(b, "t")) and await ok(b.posted["received t"])

    asyncio.run(main())


def test_a_grant_that_comes_too_late_is_given_back_and_the_pair_kept():
    async def main():
        async with ends("a", "b") as (net, (a, b)):
            assert await ok(a.send(b, "s")) and await ok(b.posted["received s"])
            pairs = dict(b.transfers._in)
            net.carry(a.me, b.me, Turn("nobody", 99, TurnKind.ASK))  # its asker has gone
            await asyncio.sleep(0.05)
            assert await ok(a.send(b, "t")) and await ok(b.posted["received t"])
            assert b.transfers._in == pairs

    asyncio.run(main())


@pytest.mark.parametrize("begun", [True, False])
def test_a_receive_that_is_closed_is_answered_once_and_costs_its_pair(begun):
    async def main():
        config = HandoverConfig(transport_s=0.7, heartbeat_s=0.1)
        async with ends("a", "b", config=config) as (_, (a, b)):
            assert await ok(a.send(b, "first")) and await ok(b.posted["received first"])
            pair = a.transfers._out[b.me][1]
            pair.send = lambda *_: None  # the header is all that comes
            busy = threading.Event()
            if not begun:
                b.transfers._thread.submit(busy.wait, 20.0)
            sending = a.send(b, "s")
            lease = LeaseKey("s", Epoch(1, 1))
            async with asyncio.timeout(20.0):
                await asyncio.shield(sending)
                while lease not in b.transfers._receives:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            b.transfers.close_receive(lease)
            if not begun:
                assert not await ok(b.posted["received s"]), "though the thread is held up"
                busy.set()
            assert not await ok(b.posted["received s"])
            assert not b.transfers._receives and not b.transfers._in
            del pair.send
            await until_ok(a, b)

    asyncio.run(main())


def test_a_receive_that_is_closed_before_it_begins_is_answered_and_gives_its_turn_back():
    async def main():
        async with ends("a", "b") as (net, (a, b)):
            lease, hear = LeaseKey("s", Epoch(1, 1)), b.hear

            def hear_and_close(sender, frame) -> None:
                hear(sender, frame)
                if isinstance(frame, Stage):
                    b.transfers.close_receive(lease)

            b.hear = hear_and_close
            a.send(b, "s")
            async with asyncio.timeout(20.0):
                await asyncio.shield(b.posted["received s"])
            assert b.transfers._promised is None and not b.transfers._receives
            b.hear = hear
            await until_ok(a, b)

    asyncio.run(main())


def test_what_a_dead_peer_left_is_closed():
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            assert await ok(a.send(b, "s")) and await ok(b.posted["received s"])
            a.transfers.forget(b.me)
            b.transfers.forget(a.me)
            assert not a.transfers._out and not b.transfers._in
            await until_ok(a, b)

    asyncio.run(main())


def window(end: End) -> Window:
    told = LocalWindow.describe(end.memory)
    return Window(told.host, told.pid, told.fd, told.size_bytes, LAYOUT.blocks, told.name)


def test_a_write_in_place_lands_and_is_answered():
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            stage = Stage(LeaseKey("s", Epoch(1, 1)), a.me, b.me, 0, 3)
            a.transfers.write_in_place(stage, window(b), [0, 5, 6], [9, 1, 2], False)
            assert await ok(a.posted["written s"])
            for layer in b.cache.layers:
                assert (layer[:, [9, 1, 2]] == ord("a")).all() and (layer[:, 3:9] == ord("b")).all()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["none", "gone", "size"])
def test_memory_that_is_out_of_reach_fails_the_write_and_is_not_tried_again(wrong):
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            at = window(b)
            bad = {
                "none": None,
                "gone": Window(at.host, at.pid, 10**6, at.size_bytes, at.blocks, at.name),
                "size": Window(at.host, at.pid, at.fd, at.size_bytes + 1, at.blocks, at.name),
            }[wrong]
            assert a.transfers.reachable(b.me)
            a.transfers.write_in_place(
                Stage(LeaseKey("s", Epoch(1, 1)), a.me, b.me, 0, 1), bad, [0], [0], True
            )
            assert not await ok(a.posted["written s"])
            assert not a.transfers.reachable(b.me)
            assert await ok(a.send(b, "t")), "there is another way"
            await b.posted["received t"]

    asyncio.run(main())


class Resting:
    """A pace that rests until it is told otherwise."""

    def __init__(self):
        self.left_s = 0.01
        self.counted = 0

    def took(self, duration_s: float) -> None:
        self.counted += 1


@pytest.mark.parametrize("way", [End.send, End.write])
def test_what_is_urgent_overtakes_what_rests(way):
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            pace = a.transfers._pace = Resting()
            resting = [way(a, b, f"resting{n}", 4, False) for n in range(3)]
            for n in range(3):
                assert await ok(way(a, b, f"urgent{n}", 4, True))
            assert not any(answer.done() for answer in resting)
            await until(lambda: pace.counted == 3)
            pace.left_s = 0.0
            assert all([await ok(answer) for answer in resting])
            await until(lambda: pace.counted == 6)
            for n in range(3 if way is End.send else 0):
                assert await ok(b.posted[f"received resting{n}"])

    asyncio.run(main())


@pytest.mark.parametrize("way", [End.send, End.write])
def test_a_copy_that_is_given_up_while_it_rests_is_answered_and_harms_no_other(way):
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            pace = a.transfers._pace = Resting()
            unwanted, wanted = way(a, b, "unwanted", 4, False), way(a, b, "wanted", 4, False)
            await asyncio.sleep(0)
            a.transfers.give_up(LeaseKey("unwanted", Epoch(1, 1)))
            a.transfers.give_up(LeaseKey("nobody's", Epoch(1, 1)))
            assert not await ok(unwanted) and not wanted.done()
            pace.left_s = 0.0
            assert await ok(wanted)
            a.transfers.give_up(LeaseKey("wanted", Epoch(1, 1)))

    asyncio.run(main())


@pytest.mark.parametrize("way", [End.send, End.write])
def test_no_rest_outlasts_a_lease_however_much_overtakes_it(way):
    async def main():
        config = HandoverConfig(transport_s=4.0, heartbeat_s=0.1, lease_s=0.4)
        async with ends("a", "b", config=config) as (_, (a, b)):
            a.transfers._pace = Resting()
            assert await ok(way(a, b, "s", 4, False))
            assert way is End.write or await ok(b.posted["received s"])

    asyncio.run(main())


def test_copies_that_never_rest_hold_back_no_handover():
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            pace = a.transfers._pace = Resting()
            done = threading.Event()
            a.transfers.submit(done.set)
            assert await ok(a.write(b, "s", 4, True))
            await until(lambda: pace.counted and not a.transfers._thread.busy_s)
            assert done.is_set() and pace.counted == 1

    asyncio.run(main())


@pytest.mark.parametrize("way", [End.send, End.write])
def test_a_copy_that_is_given_up_as_soon_as_it_is_asked_for_is_answered(way):
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            a.transfers._pace = Resting()
            unwanted = way(a, b, "s", 4, False)
            a.transfers.give_up(LeaseKey("s", Epoch(1, 1)))
            assert not await ok(unwanted)

    asyncio.run(main())


def test_a_copy_hangs_once_it_lasts_many_times_its_limit():
    async def main():
        config = HandoverConfig(transport_s=0.02, heartbeat_s=0.1)
        async with ends("a", config=config) as (_, (a,)):
            held = threading.Event()
            assert not a.transfers.hang
            a.transfers.submit(lambda: held.wait(60))
            await until(lambda: a.transfers.hang)
            held.set()
            await until(lambda: not a.transfers.hang)

    asyncio.run(main())


@pytest.mark.parametrize("way", [End.send, End.write])
def test_closing_answers_what_has_not_begun(way):
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            a.transfers._pace = Resting()
            asked = way(a, b, "s", 4, False)
            await a.transfers.close()
            assert not await ok(asked)

    asyncio.run(main())


@pytest.mark.parametrize("way", [End.send, End.write])
def test_closing_answers_what_rests(way):
    async def main():
        async with ends("a", "b", config=PATIENT) as (_, (a, b)):
            a.transfers._pace = Resting()
            resting = way(a, b, "s", 4, False)
            await asyncio.sleep(0.05)
            await a.transfers.close()
            assert not await ok(resting)

    asyncio.run(main())


def test_closing_answers_what_was_under_way_and_leaves_no_file_open():
    async def main():
        async with ends("a", "b") as (_, (a, b)):
            assert await ok(a.send(b, "s")) and await ok(b.posted["received s"])
            b.deaf = True
            waiting = a.send(b, "t")
            await asyncio.sleep(0.05)
            await a.transfers.close()
            assert not await ok(waiting)
            await b.transfers.close()

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    deadline = time.monotonic() + 20  # gloo's own threads close theirs a little later
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before
