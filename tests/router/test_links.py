"""A link to one instance: bounded in what waits for it, and made anew where it is not drained."""

import asyncio
import os
from dataclasses import replace

import grpc.aio
import pytest
from toy_fleet import swept, until

from penstock.handover.config import HandoverConfig
from penstock.handover.effects import Condemn
from penstock.handover.frames import Step, Welcome
from penstock.handover.values import Context, Epoch, Incarnation, Revoke, Seen, Start
from penstock.handover.wire import from_link_request, to_link_response
from penstock.policy.state import InstanceView, LoadView
from penstock.proto.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from penstock.router import links
from penstock.router.config import ModelInfo
from penstock.router.links import Link, Links

ME = Incarnation("one", 1)
QUEUE = 40
LARGE = Context(tuple(range(200_000)))
"""A few of them fill the windows of a stream."""


class Deaf(WorkerServiceServicer):
    """An instance that beats, and reads only what its test lets it read."""

    def __init__(self):
        self.streams = 0
        self.reads = asyncio.Event()
        self.heard = []
        self.condemns = False
        self.ends = asyncio.Event()
        self.server = grpc.aio.server()

    async def Link(self, request_iterator, context):
        self.streams += 1
        yield to_link_response(Welcome(ME, "toy", 4096, 1000, os.getpid()))
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while not self.ends.is_set():
                yield to_link_response(Step((), LoadView()))
                if self.condemns:
                    self.condemns = False
                    yield to_link_response(Condemn(Incarnation("other", 1)))
                await asyncio.sleep(0.02)
        finally:
            self.ends.clear()
            reader.cancel()

    async def _read(self, requests) -> None:
        await self.reads.wait()
        async for request in requests:
            self.heard.append(from_link_request(request))


class Ears:
    """What a router would hear."""

    def __init__(self):
        self.losses = []

    def heard(self, sender, message) -> None: ...

    def lost(self, instance, reason) -> None:
        self.losses.append(reason)

    def condemned(self, writer: Condemn) -> None: ...


def play(scenario, config: HandoverConfig) -> None:
    async def main():
        instance, ears = Deaf(), Ears()
        server = instance.server
        add_WorkerServiceServicer_to_server(instance, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        view = InstanceView(name="one", life=1, address=f"127.0.0.1:{port}")
        link = Link(view, "r", config, QUEUE, ears, lambda welcome: "")
        try:
            await until(lambda: link.view.alive)
            await scenario(link, instance, ears)
        finally:
            await link.close()
            await server.stop(0)
            await swept()

    asyncio.run(main())


def start(number: int) -> Start:
    return Start(f"s{number}", Epoch(1, 1), LARGE)


PATIENT = HandoverConfig(heartbeat_s=0.03, hung_after_s=60.0, grace_s=61.0)
"""Nothing but the bound ends a stream."""
FAST = HandoverConfig(heartbeat_s=0.03, hung_after_s=0.4)


@pytest.mark.parametrize("kind", [start, lambda number: Seen(f"s{number}", 1, number)])
def test_what_waits_for_an_instance_that_does_not_read_is_bounded_and_its_stream_made_anew(kind):
    async def scenario(link, instance, ears):
        for number in range(20):  # the stream is full, whatever its windows hold
            link.tell(start(number))
        await asyncio.sleep(0.1)
        for number in range(1000):
            link.tell(kind(number))
            assert link.waiting <= QUEUE + 1
        await until(lambda: instance.streams == 2 and link.view.alive)
        assert not link.waiting and not ears.losses, "it lives, and only what was told is lost"
        instance.reads.set()
        link.tell(Revoke("s", Epoch(1, 1)))
        await until(lambda: Revoke("s", Epoch(1, 1)) in instance.heard)

    play(scenario, PATIENT)


def test_an_instance_that_died_is_lost_with_the_next_try_which_is_made_at_once(monkeypatch):
    monkeypatch.setattr(links, "FIRST_RETRY_S", 1000.0)

    async def dies(link: Link, instance: Deaf, ears: Ears) -> None:
        await instance.server.stop(None)
        await until(lambda: ears.losses)

    play(dies, HandoverConfig(hung_after_s=100.0, grace_s=200.0))


def test_a_stream_that_breaks_is_made_anew_at_once_and_nobody_is_lost(monkeypatch):
    monkeypatch.setattr(links, "FIRST_RETRY_S", 1000.0)

    async def breaks(link: Link, instance: Deaf, ears: Ears) -> None:
        instance.ends.set()
        await until(lambda: instance.streams > 1 and link.view.alive)
        assert ears.losses == []

    play(breaks, HandoverConfig(hung_after_s=100.0, grace_s=200.0))


def test_a_message_that_is_not_taken_in_time_breaks_the_stream():
    async def scenario(link, instance, ears):
        for number in range(QUEUE - 5):
            link.tell(start(number))
        await until(lambda: instance.streams == 2)
        assert not ears.losses

    play(scenario, FAST)


def test_a_link_outlives_a_defect_of_whoever_hears_it():
    async def scenario(link, instance, ears):
        def fail(writer):
            ears.losses.append("heard")
            raise KeyError(writer)

        ears.condemned = fail
        instance.condemns = True
        await until(lambda: instance.streams == 2 and link.view.alive)
        assert ears.losses == ["heard"]

    play(scenario, PATIENT)


def test_all_seen_of_a_session_are_one_message():
    async def scenario(link, instance, ears):
        for index in range(10 * QUEUE):
            link.tell(Seen("s", 1, index))
        assert link.waiting == 1
        instance.reads.set()
        await until(lambda: any(getattr(frame, "seen", ()) for frame in instance.heard))
        [batch] = [frame for frame in instance.heard if getattr(frame, "seen", ())]
        assert batch.seen == (Seen("s", 1, 10 * QUEUE - 1),) and instance.streams == 1

    play(scenario, PATIENT)


MODEL = ModelInfo(name="toy", context_tokens=4096, vocabulary=1000)


@pytest.mark.parametrize(
    ("fingerprint", "context", "vocabulary", "says"),
    [
        ("toy", 4096, 999, "vocabulary"),
        ("toy", 4096, 1001, "vocabulary"),
        ("toy", 4095, 1000, "context"),
        ("other", 4096, 1000, "weights"),
    ],
)
def test_an_instance_of_another_model_is_not_used_which_is_said_once(
    fingerprint, context, vocabulary, says, caplog
):
    async def main():
        ears = Ears()
        held = Links("r", FAST, QUEUE, ears, MODEL)
        held.set_instances(
            InstanceView(name=name, life=1, address="127.0.0.1:1", load=LoadView()) for name in ("one", "odd")
        )
        one, odd = held._links.values()
        one._take(Welcome(ME, "toy", 4096, 1000, 1))
        one._take(Step((), LoadView()))
        welcome = Welcome(odd.incarnation, fingerprint, context, vocabulary, 1)
        for _ in range(3):
            with pytest.raises(links.StreamBroken, match=says):
                odd._take(welcome)
        assert len(ears.losses) == 1 and says in ears.losses[0]
        assert [view.name for view in held.views() if view.alive] == ["one"]
        assert held.refused() == {odd.incarnation: ears.losses[0]}
        odd._take(replace(welcome, fingerprint="toy", context_tokens=5000, vocabulary=1000))
        odd._take(Step((), LoadView()))
        assert all(view.alive for view in held.views()) and not held.refused()
        await held.close()

    asyncio.run(main())
    assert sum(says in record.getMessage() for record in caplog.records) == 1


def test_other_weights_may_follow_when_no_instance_of_the_old_ones_is_linked():
    async def main():
        held = Links("r", FAST, QUEUE, Ears(), MODEL)
        held.set_instances([InstanceView(name="one", life=1, address="127.0.0.1:1")])
        (one,) = held._links.values()
        one._take(Welcome(ME, "toy", 4096, 1000, 1))
        held.set_instances([InstanceView(name="one", life=2, address="127.0.0.1:1")])
        (next_one,) = held._links.values()
        next_one._take(Welcome(next_one.incarnation, "newer", 4096, 1000, 1))
        assert next_one._linked
        await held.close()

    asyncio.run(main())
