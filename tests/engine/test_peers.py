"""Streams to other instances: in order, opened when needed, and never a wait without end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from penstock.engine.peers import QUEUE, Peers
from penstock.handover import wire
from penstock.handover.config import HandoverConfig
from penstock.handover.frames import PeerHello, Turn, TurnKind
from penstock.handover.values import Address, Incarnation
from penstock.proto import worker_pb2 as pb
from penstock.proto.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

ME = Address(Incarnation("me", 1), "127.0.0.1:1")
PEER = Incarnation("peer", 1)
CONFIG = HandoverConfig(hung_after_s=0.5)


class Listener(WorkerServiceServicer):
    """Keeps what it hears; `cuts` ends each stream after so many frames."""

    def __init__(self) -> None:
        self.heard: list[list] = []
        self.cuts = 10**9

    async def Peer(self, request_iterator, context):
        frames: list = []
        self.heard.append(frames)
        async for request in request_iterator:
            frames.append(wire.from_peer_request(request))
            if len(frames) == self.cuts:
                break
        return pb.PeerResponse()


@asynccontextmanager
async def listening():
    server, listener, peers = grpc.aio.server(), Listener(), Peers(ME, CONFIG)
    add_WorkerServiceServicer_to_server(listener, server)
    peers.meet(Address(PEER, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"))
    await server.start()
    try:
        yield listener, peers
    finally:
        await peers.close()
        await server.stop(0)


def turn(number: int) -> Turn:
    return Turn("pair", number, TurnKind.ASK)


async def until(true, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_stream_begins_with_hello_and_keeps_its_order():
    async def main():
        async with listening() as (listener, peers):
            for number in range(200):
                peers.send(PEER, turn(number))
            await until(lambda: listener.heard and len(listener.heard[0]) == 201)
            assert listener.heard == [[PeerHello(ME, PEER), *(turn(number) for number in range(200))]]

    asyncio.run(main())


def test_after_a_break_a_new_stream_begins_with_hello_again():
    async def main():
        async with listening() as (listener, peers):
            listener.cuts = 2
            peers.send(PEER, turn(1))
            await until(lambda: listener.heard and len(listener.heard[0]) == 2)
            listener.cuts = 10**9
            number = 2
            async with asyncio.timeout(15):
                while (
                    len(listener.heard) < 2 or len(listener.heard[-1]) < 2
                ):  # what the broken stream held is lost
                    peers.send(PEER, turn(number))
                    number += 1
                    await asyncio.sleep(0.02)
            assert listener.heard[-1][0] == PeerHello(ME, PEER)

    asyncio.run(main())


def test_what_is_said_to_nobody_known_or_to_the_dead_is_lost_and_harms_nothing():
    async def main():
        async with listening() as (listener, peers):
            peers.send(Incarnation("stranger", 1), turn(1))
            peers.send(PEER, turn(2))
            await until(lambda: listener.heard)
            peers.forget(PEER)
            peers.send(PEER, turn(3))
            await asyncio.sleep(0.1)
            assert turn(3) not in listener.heard[0] and not peers._streams

    asyncio.run(main())


def test_a_peer_that_takes_nothing_costs_a_bounded_queue_and_no_task():
    async def main():
        hung = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
        peers = Peers(ME, CONFIG)
        peers.meet(Address(PEER, f"127.0.0.1:{hung.getsockname()[1]}"))
        for number in range(QUEUE + 10):
            peers.send(PEER, turn(number))
        _, task = peers._streams[PEER]
        async with asyncio.timeout(15):
            await asyncio.wait([task])
        peers.send(PEER, turn(0))  # it is tried anew
        assert peers._streams[PEER][1] is not task
        await peers.close()
        hung.close()

    asyncio.run(main())
