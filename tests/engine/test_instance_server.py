"""Instances behind real sockets with the real model: moves, peers that die or hang, and what is left afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from bare_router import BareRouter, Stream, until
from llguidance import LLMatcher

from penstock.decode_worker.phase import DecodePhase
from penstock.engine import server as server_module
from penstock.engine.config import EngineConfig
from penstock.engine.server import InstanceServer
from penstock.handover.config import HandoverConfig
from penstock.handover.frames import Dead, Hello, PeerHello, Step
from penstock.handover.values import (
    Address,
    Context,
    Epoch,
    Incarnation,
    LeaseKey,
    MoveMode,
    News,
    Reserve,
    SamplingParams,
    TokenRecord,
)
from penstock.handover.wire import to_link_request, to_peer_request
from penstock.prefill_worker.phase import PrefillPhase
from penstock.proto import worker_pb2 as pb
from penstock.proto.worker_pb2_grpc import WorkerServiceStub

HANDOVER = HandoverConfig()
DRAIN_S = 5.0
TRANSPORTS = ("local", "gloo")


def server(
    name: str, transport: str = "local", prefill: int = 256, slots: int = 32, **engine
) -> InstanceServer:
    config = EngineConfig(kv_bytes=32 << 20, transport=transport, **engine)
    return InstanceServer(name, 1, config, HANDOVER, prefill, slots, PrefillPhase(), DecodePhase())


def at(one: InstanceServer) -> Address:
    return Address(one.me, one.address)


@asynccontextmanager
async def running(*servers: InstanceServer):
    """A router linked to all of them; all is free in the end."""
    router = BareRouter()
    try:
        await asyncio.gather(*(one.start() for one in servers))
        for one in servers:
            router.connect(at(one))
        yield router
        await until(lambda: all(free(one) for one in servers))
    finally:
        await router.close()
        await asyncio.gather(*(one.stop() for one in servers))


def free(one: InstanceServer) -> bool:
    load = one._engine.load
    return load.free_blocks + load.cached_blocks == load.total_blocks and not load.waiting + load.running


def prompt(length: int, seed: int = 0, **params) -> Context:
    tokens = tuple((number * 7919 + seed * 104729) % 4000 + 10 for number in range(length))
    defaults = {"temperature": 1.0, "seed": seed, "max_tokens": 64, "ignore_eos": True}
    return Context(tokens, (), SamplingParams(**{**defaults, **params}))


def settled(stream: Stream) -> int:
    """The tokens that it has, unless it is on its way."""
    return 0 if stream.session.pending else len(stream.ids)


class Unruly:
    """Stands before a `send`: what passes may come late, twice, and after what was sent later. Nothing is lost."""

    def __init__(self, send, seed: int):
        self._send = send
        self._draw = random.Random(seed)
        self.doubled = self.delayed = 0

    def __call__(self, receiver, message) -> None:
        loop = asyncio.get_running_loop()
        if self._draw.random() < 0.2:
            self.doubled += 1
            loop.call_later(self._draw.random() * 0.05, self._send, receiver, message)
        if self._draw.random() < 0.3:
            self.delayed += 1
            loop.call_later(self._draw.random() * 0.02, self._send, receiver, message)
        else:
            self._send(receiver, message)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_late_doubled_and_disordered_messages_change_no_token(transport, monkeypatch):
    async def main():
        servers = server("prefill", transport, slots=0), server("left", transport), server("right", transport)
        prefill, left, right = servers
        async with running(*servers) as router:
            unruly = [Unruly(router.send, 0)]
            monkeypatch.setattr(router, "send", unruly[0])
            for number, one in enumerate(servers, 1):
                unruly += Unruly(one._peers.send, number), Unruly(one._links.tell, -number)
                monkeypatch.setattr(one._peers, "send", unruly[-2])
                monkeypatch.setattr(one._links, "tell", unruly[-1])
            contexts = {
                f"s{n}": prompt(length, n, max_tokens=100) for n, length in enumerate((1, 16, 400, 700))
            }
            for key, context in contexts.items():
                router.start(f"still-{key}", context, at(left))
                router.start(key, context, at(prefill), at(left)).again = at(prefill), at(left)
            for _ in range(12):
                await asyncio.sleep(0.15)
                for key in contexts:
                    to = right if router.streams[key].session.owner == left.me else left
                    router.move(key, at(to))
                    router.nudge(key)
                router.recover_silent(2.0)
            while not all(stream.session.closed for stream in router.streams.values()):
                await asyncio.sleep(0.1)
                router.recover_silent(2.0)
            for key in contexts:
                assert router.streams[key].ids == router.streams[f"still-{key}"].ids
            assert all(one.doubled and one.delayed for one in unruly)
            assert any(sum(router.streams[key].moves) >= 2 for key in contexts)

    asyncio.run(asyncio.wait_for(main(), 120))


def test_a_first_token_that_its_maker_tells_late_comes_with_the_handover(monkeypatch):
    async def main():
        prefill, decode = server("prefill", slots=0), server("decode")
        async with running(prefill, decode) as router:
            late = []
            with monkeypatch.context() as patch:
                patch.setattr(prefill._links, "tell", lambda *said: late.append(said))
                stream = router.start("s", prompt(300), at(prefill), at(decode))
                await until(lambda: stream.ids)
            for said in late:
                prefill._links.tell(*said)
            router.start("still", prompt(300), at(decode))
            await until(lambda: all(one.session.closed for one in router.streams.values()))
            assert stream.makers[0] == "decode" and stream.went_on_at("decode") and stream.moves == [True]
            assert stream.ids == router.streams["still"].ids

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_migrated_stream_equals_unmoved_stream(transport):
    async def main():
        prefill, left, right = (
            server("prefill", transport, slots=0),
            server("left", transport),
            server("right", transport),
        )
        async with running(prefill, left, right) as router:
            contexts = {f"s{n}": prompt(length, n, max_tokens=150) for n, length in enumerate((1, 16, 400))}
            for key, context in contexts.items():
                router.start(f"still-{key}", context, at(left))
                router.start(key, context, at(prefill), at(left))
            moving = [router.streams[key] for key in contexts]
            for least, mode in ((5, MoveMode.LIVE), (25, MoveMode.BLOCKING), (45, MoveMode.LIVE)):
                await until(lambda: all(settled(stream) > least for stream in moving))  # noqa: B023
                for stream in moving:
                    to = right if stream.session.owner == left.me else left
                    router.move(stream.session.key, at(to), mode)
            await until(lambda: all(stream.session.closed for stream in router.streams.values()), 60)
            for key in contexts:
                stream = router.streams[key]
                assert stream.ids == router.streams[f"still-{key}"].ids and len(stream.ids) == 150
                assert sum(stream.moves) >= 2, stream.moves
                assert stream.went_on_at("left", "right")

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streams_move_unchanged_between_instances_of_unequal_tensor_parallelism(transport):
    async def main():
        prefill = server("prefill", transport, slots=0, tensor_parallel=2)
        left, right = server("left", transport), server("right", transport, tensor_parallel=2)
        async with running(prefill, left, right) as router:
            contexts = {f"s{n}": prompt(length, n, max_tokens=80) for n, length in enumerate((1, 300))}
            for key, context in contexts.items():
                router.start(f"still-{key}", context, at(left))
                router.start(key, context, at(prefill), at(left))
            moving = [router.streams[key] for key in contexts]
            for least in (5, 30):
                await until(lambda: all(settled(stream) > least for stream in moving), 60)  # noqa: B023
                for stream in moving:
                    to = right if stream.session.owner == left.me else left
                    router.move(stream.session.key, at(to))
            await until(lambda: all(stream.session.closed for stream in router.streams.values()), 60)
            for key in contexts:
                stream = router.streams[key]
                assert stream.ids == router.streams[f"still-{key}"].ids and len(stream.ids) == 80
                assert stream.went_on_at("left", "right")

    asyncio.run(main())


def test_an_instance_ends_when_a_rank_of_it_does(tmp_path):
    async def main():
        one = Process(tmp_path, "one", "local", tensor_parallel=2)
        try:
            await one.address()
            (rank,) = children(one.process.pid)
            os.kill(rank, signal.SIGKILL)
            await until(lambda: one.process.poll() is not None, HANDOVER.hung_after_s + 10)
            assert one.process.returncode == 70
        finally:
            one.end()

    asyncio.run(main())


@pytest.mark.parametrize("defect", ["copy", "heart"])
def test_an_instance_whose_copy_hangs_or_whose_heart_fails_ends(defect, monkeypatch):
    def fail(now: float) -> None:
        raise AssertionError("a defect")

    async def main():
        why: list[str] = []
        monkeypatch.setattr(server_module, "_end_process", lambda told, error=None: why.append(told))
        one = server("a")
        one._handover = replace(HANDOVER, transport_s=0.1)
        held = threading.Event()
        async with running(one):
            await asyncio.sleep(3 * HANDOVER.heartbeat_s)
            assert not why
            if defect == "copy":
                one._transfers.submit(lambda: held.wait(60) and None)
            else:
                monkeypatch.setattr(one._links, "beat", fail)
            await until(lambda: why)
            held.set()
            assert defect in why[0]

    asyncio.run(main())


@pytest.mark.parametrize("host_bytes", [0, 8 << 20])
def test_streams_are_the_same_where_memory_is_short(host_bytes):
    """Sequences give their memory back, and are computed again or come back from host memory."""

    async def main():
        short = server("short", kv_blocks=56, admission="aggressive", host_kv_bytes=host_bytes)
        ample = server("ample")
        async with running(short, ample) as router:
            contexts = {
                f"s{n}": prompt(length, n, max_tokens=200) for n, length in enumerate((1, 60, 120, 90))
            }
            for key, context in contexts.items():
                router.start(key, context, at(short))
                router.start(f"ample-{key}", context, at(ample))
            await until(lambda: all(stream.session.closed for stream in router.streams.values()), 60)
            assert short._engine.load.preemptions > 0 == ample._engine.load.preemptions
            for key in contexts:
                assert router.streams[key].ids == router.streams[f"ample-{key}"].ids
            if host_bytes:
                assert short._engine._scheduler.kv._host.host.counts().cached > 0

    asyncio.run(main())


def test_a_ring_of_instances_that_send_to_each_other_at_once_does_not_lock():
    async def main():
        ring = [server(name, "gloo") for name in "abc"]
        async with running(*ring) as router:
            for n in range(12):
                router.start(f"s{n}", prompt(80, n, max_tokens=400), at(ring[n % 3]))
            streams = router.streams
            await until(lambda: all(len(stream.ids) > 2 for stream in streams.values()), 60)
            for _ in range(2):
                for key, stream in streams.items():
                    here = next(n for n, one in enumerate(ring) if one.me == stream.session.owner)
                    router.move(key, at(ring[(here + 1) % 3]))
                await until(lambda: not any(stream.session.pending for stream in streams.values()))
            done = sum(sum(stream.moves) for stream in streams.values())
            assert done >= 20, f"{done} of 24 moves"
            for key in streams:
                router.cancel(key)

    asyncio.run(main())


class Process:
    """An instance in a process of its own, to be killed or stopped."""

    def __init__(self, folder: Path, name: str, transport: str, **engine):
        self.file = folder / name
        config = EngineConfig(kv_bytes=32 << 20, transport=transport, **engine)
        settings = {
            "name": name,
            "life": 1,
            "prefill_tokens": 256,
            "decode_slots": 32,
            "drain_s": DRAIN_S,
            "log_level": "warning",
        }
        text = json.dumps({**settings, "engine": asdict(config), "handover": asdict(HANDOVER)})
        module = "penstock.cluster.instance"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, text, "--address-file", str(self.file)]
        )
        self.me = Incarnation(name, 1)

    async def address(self) -> Address:
        await until(lambda: self.file.exists() or self.process.poll() is not None, 60)
        return Address(self.me, self.file.read_text())

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_dies_or_hangs_in_mid_copy_does_not_stop_the_source(tmp_path, transport):
    async def main():
        peers = {how: Process(tmp_path, how.name, transport) for how in (signal.SIGKILL, signal.SIGSTOP)}
        try:
            here = server("here", transport)
            async with running(here) as router:
                other = router.start("other", prompt(20, 9, max_tokens=4000), at(here))
                for how, peer in peers.items():
                    await move_and_strike(router, here, peer, how)
                    assert not other.session.closed, "it runs beside all of this"
                router.cancel("other")
        finally:
            for peer in peers.values():
                peer.end()

    asyncio.run(main())


async def move_and_strike(
    router: BareRouter, here: InstanceServer, peer: Process, how: signal.Signals
) -> None:
    to, other = await peer.address(), router.streams["other"]
    router.connect(to)
    stream = router.start(how.name, prompt(1500, 1, max_tokens=3000), at(here))
    await until(lambda: len(stream.ids) > 2, 60)
    router.move(how.name, to)
    await until(lambda: any(one.sent for one in sources(here, how.name)) or stream.moves)
    os.kill(peer.process.pid, how)
    await until(lambda: stream.moves, HANDOVER.lease_s + HANDOVER.transport_s + 10)
    if stream.moves == [False]:  # else it had left just before
        seen, neighbour = len(stream.ids), len(other.ids)
        await until(lambda: len(stream.ids) > seen + 20 and len(other.ids) > neighbour)
        assert peer.me.instance not in stream.makers
    peer.end()
    router.send(here.me, Dead((peer.me,)))
    router.cancel(how.name)


def test_sigterm_ends_an_instance_once_all_that_it_has_was_moved_away(tmp_path):
    async def main():
        here = server("here")
        told = Process(tmp_path, "told", "local")
        try:
            async with running(here) as router:
                there = await told.address()
                router.connect(there)
                for number in range(3):
                    router.start(f"still-{number}", prompt(100, number, max_tokens=500), at(here))
                    router.start(f"s{number}", prompt(100, number, max_tokens=500), there)
                moving = [router.streams[f"s{number}"] for number in range(3)]
                await until(lambda: all(len(stream.ids) > 3 for stream in moving))
                told.process.send_signal(signal.SIGTERM)
                await until(lambda: router.lines[told.me].load.draining)
                for number in range(3):
                    router.move(f"s{number}", at(here))
                assert await asyncio.to_thread(told.process.wait, 30) == 0
                await until(lambda: all(stream.session.closed for stream in router.streams.values()))
                for number, stream in enumerate(moving):
                    assert stream.ids == router.streams[f"still-{number}"].ids
                    assert stream.went_on_at("here") and stream.moves == [True]
        finally:
            told.end()

    asyncio.run(main())


def test_a_drain_that_nobody_helps_ends_within_its_limit():
    async def main():
        alone = server("alone")
        async with running(alone) as router:
            stream = router.start("s", prompt(20, max_tokens=4000), at(alone))
            await until(lambda: len(stream.ids) > 2)
            assert await alone.drain(0.3) == 1
            late = router.start("late", prompt(20), at(alone))
            seen = len(stream.ids)
            await until(lambda: len(stream.ids) > seen + 5)
            assert not late.ids, "what comes late is not begun"
            router.cancel("s")
            router.cancel("late")
            assert await alone.drain(5.0) == 0

    asyncio.run(main())


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def sources(one: InstanceServer, session: str):
    seat = one._engine._seats.get(session)
    return seat.sources if seat else ()


def test_cancel_frees_within_a_step_or_chunk_wherever_the_session_is():
    async def main():
        prefill, decode = server("prefill", "gloo", slots=0), server("decode", "gloo")
        async with running(prefill, decode) as router:
            for n in range(8):
                key = f"s{n}"
                router.start(key, prompt(400, n, max_tokens=50), at(prefill), at(decode))
                await asyncio.sleep(0.03 * n)
                router.cancel(key)
                await until(lambda: free(prefill) and free(decode), HANDOVER.lease_s + 5)

    asyncio.run(main())


def test_a_router_that_comes_back_hears_what_it_missed():
    async def main():
        one = server("one")
        async with running(one) as router:
            stream = router.start("s", prompt(10, max_tokens=300), at(one))
            await until(lambda: len(stream.ids) > 3)
            line = router.lines[one.me]
            assert line.task
            line.task.cancel()
            await asyncio.sleep(0.2)
            router.connect(at(one))
            await until(lambda: stream.session.closed, 60)
            assert len(stream.ids) == 300

    asyncio.run(main())


def test_only_the_right_life_is_spoken_to():
    async def main():
        one = server("one")
        async with running(one), grpc.aio.insecure_channel(one.address) as channel:
            stub = WorkerServiceStub(channel)
            for first, code in (
                (to_link_request(Hello("r", Incarnation("one", 2))), grpc.StatusCode.FAILED_PRECONDITION),
                (pb.LinkRequest(beat=pb.Beat()), grpc.StatusCode.FAILED_PRECONDITION),
                (pb.LinkRequest(), grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in stub.Link(iter([first])):
                        pass
                assert caught.value.code() is code

    asyncio.run(main())


def test_a_router_that_takes_nothing_is_spoken_to_no_more():
    async def main():
        one = server("one")
        async with running(one), grpc.aio.insecure_channel(one.address) as channel:
            one._heart.cancel()  # which ends the process where the engine is silent for so short a time
            one._links._handover = replace(HANDOVER, hung_after_s=0.4, grace_s=0.5)
            call = WorkerServiceStub(channel).Link()
            await call.write(to_link_request(Hello("hung", one.me)))
            await until(lambda: "hung" in one._links)
            seen = News("s", Epoch(1, 1), 0, tuple(TokenRecord(1) for _ in range(100_000)))
            for _ in range(16):
                one._links.tell("hung", Step((seen,)))
            await until(lambda: "hung" not in one._links)
            await until(lambda: all(task.get_name() != "from hung" for task in asyncio.all_tasks()))

    asyncio.run(main())


GHOST = Incarnation("ghost", 1)


def reserve(one: InstanceServer) -> Reserve:
    """What a writer says that died, or was held dead, before its words arrived."""
    house = one._engine._house
    return Reserve(
        LeaseKey("s", Epoch(1, 2)),
        *(GHOST, one.me, house.fingerprint, house.layout, 2, prompt(20), "bare"),
        one_sided=True,
    )


@pytest.mark.parametrize("stream_is_older", [True, False])
def test_late_words_of_a_dead_incarnation_get_no_lease(stream_is_older):
    async def main():
        one = server("one")
        async with running(one) as router, grpc.aio.insecure_channel(one.address) as channel:

            def bury() -> None:
                router.send(one.me, Dead((GHOST,)))

            bury() if not stream_is_older else None
            await until(lambda: stream_is_older or one._dead)
            call = WorkerServiceStub(channel).Peer()
            await call.write(to_peer_request(PeerHello(Address(GHOST, "127.0.0.1:1"), one.me)))
            if stream_is_older:
                await asyncio.sleep(0.1)
                bury()
                await until(lambda: one._dead)
            await call.write(to_peer_request(reserve(one)))
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
            await asyncio.sleep(2 * HANDOVER.heartbeat_s)
            assert free(one) and not one._engine._seats

    asyncio.run(main())


REGEX = LLMatcher.grammar_from_regex("[a-z ]{20}")


@contextmanager
def compiles_held(one: InstanceServer):
    """No grammar of this instance is compiled until the event that it yields is set."""
    prepare, gate = one._intake._prepare, threading.Event()

    def held(grammar: str) -> None:
        assert gate.wait(60)
        prepare(grammar)

    one._intake._prepare = held
    try:
        yield gate
    finally:
        gate.set()


def test_while_a_grammar_compiles_others_on_the_same_streams_go_on():
    async def main():
        prefill, decode = server("prefill", slots=0), server("decode")
        async with running(prefill, decode) as router:
            with compiles_held(prefill) as gate, compiles_held(decode):
                held = router.start(
                    "held", prompt(20, grammar=REGEX, ignore_eos=False), at(prefill), at(decode)
                )
                router.start("left", prompt(20, grammar=REGEX, ignore_eos=False), at(prefill), at(decode))
                other = router.start("other", prompt(20, max_tokens=20), at(prefill), at(decode))
                await until(lambda: other.session.closed)
                assert len(other.ids) == 20 and other.went_on_at("decode")
                assert not held.ids
                router.cancel("left")
                gate.set()
                await until(lambda: held.ids)
                another = router.start("another", prompt(30, max_tokens=20), at(prefill), at(decode))
                await until(lambda: another.session.closed)
                assert another.went_on_at("decode"), "its Peer stream waited for a grammar"
            await until(lambda: held.session.closed)
            assert not router.streams["left"].ids

    asyncio.run(main())


def test_a_writer_that_dies_while_its_grammar_compiles_gets_no_lease():
    async def main():
        one = server("one")
        async with running(one) as router, grpc.aio.insecure_channel(one.address) as channel:
            with compiles_held(one):
                call = WorkerServiceStub(channel).Peer()
                await call.write(to_peer_request(PeerHello(Address(GHOST, "127.0.0.1:1"), one.me)))
                asked = reserve(one)
                context = prompt(20, grammar=REGEX, ignore_eos=False)
                await call.write(to_peer_request(replace(asked, context=context)))
                await until(lambda: one._intake.backlog)
                router.send(one.me, Dead((GHOST,)))
                await until(lambda: one._dead)
            await until(lambda: not one._intake.backlog)
            await asyncio.sleep(2 * HANDOVER.heartbeat_s)
            assert free(one) and not one._engine._seats
            call.cancel()

    asyncio.run(main())


def test_the_dead_are_remembered_within_a_bound(monkeypatch):
    monkeypatch.setattr(server_module, "DEAD_KEPT", 3)

    async def main():
        one = server("one")
        async with running(one) as router:
            router.send(one.me, Dead(tuple(Incarnation("ghost", life) for life in range(9))))
            await until(lambda: Incarnation("ghost", 8) in one._dead)
            assert list(one._dead) == [Incarnation("ghost", life) for life in (6, 7, 8)]

    asyncio.run(main())


def test_a_prompt_beyond_what_it_holds_harms_nobody():
    async def main():
        one = server("one", kv_blocks=8)
        async with running(one) as router:
            router.start("huge", prompt(500), at(one))
            stream = router.start("s", prompt(10, max_tokens=20), at(one))
            await until(lambda: stream.session.closed)
            assert len(stream.ids) == 20 and not router.streams["huge"].ids
            router.cancel("huge")

    asyncio.run(main())


def test_it_listens_on_loopback_alone_and_leaves_nothing_behind():
    async def main():
        left, right = server("left", "gloo"), server("right", "auto")
        async with running(left, right) as router:
            stream = router.start("s", prompt(100, max_tokens=40), at(left), at(right))
            await until(lambda: stream.session.closed)
            assert not foreign()

    asyncio.run(main())  # what is loaded once stays
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        gc.collect()
        more = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        if not more and len(os.listdir("/proc/self/fd")) <= files:
            return
        time.sleep(0.1)
    raise AssertionError(f"{more} and {len(os.listdir('/proc/self/fd')) - files} files are left")


def foreign() -> set[str]:
    """Addresses other than loopback's on which this process listens."""
    own = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                packed = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
                found.add(socket.inet_ntop(family, words))
    return found - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
