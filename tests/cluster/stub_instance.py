"""An instance without an engine: it beats, and answers a request with the ids 1, 2, 3 ... at once."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc.aio

from penstock.cluster.config import InstanceSettings
from penstock.handover.effects import Condemn
from penstock.handover.frames import Assign, Dead, Hello, Step, Welcome
from penstock.handover.values import End, Incarnation, News, Start, TokenRecord
from penstock.handover.wire import from_link_request, to_link_response
from penstock.policy.state import LoadView
from penstock.proto import worker_pb2 as pb
from penstock.proto.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server


class StubInstance(WorkerServiceServicer):
    def __init__(self, settings: InstanceSettings):
        self.settings = settings
        self.who = Incarnation(settings.name, settings.life)
        self.load = LoadView(
            total_blocks=100,
            free_blocks=100,
            prefill_tokens=settings.prefill_tokens,
            decode_slots=settings.decode_slots,
            block_size=16,
        )
        self.hung = False
        self.writer: Incarnation | None = None
        """Whose end it asks for next."""
        self.dead: set[Incarnation] = set()
        """What it was told of."""
        self.assigned: Assign | None = None

    async def start(self) -> str:
        self.server = grpc.aio.server()
        add_WorkerServiceServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(f"{self.settings.host}:0")
        await self.server.start()
        return f"{self.settings.host}:{port}"

    async def stop(self) -> None:
        await self.server.stop(0)

    async def Link(self, request_iterator, context) -> AsyncIterator[pb.LinkResponse]:
        started: list[Start] = []
        hearing = asyncio.create_task(self._hear(request_iterator, started))
        try:
            yield to_link_response(Welcome(self.who, "stub", 1 << 20, 4096, os.getpid()))
            while True:
                await asyncio.sleep(self.settings.handover.heartbeat_s / 2)
                if self.hung:
                    continue
                news = tuple(_answer(start) for start in started)
                started.clear()
                yield to_link_response(Step(news, self.load))
                if self.writer is not None:
                    yield to_link_response(Condemn(self.writer))
                    self.writer = None
        finally:
            hearing.cancel()

    async def _hear(self, requests, started: list[Start]) -> None:
        async for request in requests:
            frame = from_link_request(request)
            if isinstance(frame, Start):
                started.append(frame)
            elif isinstance(frame, Dead):
                self.dead.update(frame.incarnations)
            elif isinstance(frame, Assign):
                self.assigned = frame
                self.load = replace(
                    self.load,
                    prefill_tokens=frame.prefill_tokens,
                    decode_slots=frame.decode_slots,
                    draining=frame.drain,
                )
            elif isinstance(frame, Hello):
                assert frame.incarnation == self.who


def _answer(start: Start) -> News:
    count = start.context.params.max_tokens
    records = tuple(TokenRecord(i + 1, End.LENGTH if i + 1 == count else None) for i in range(count))
    return News(start.session, start.epoch, 0, records)


class DoomedInstance(StubInstance):
    """Its process dies while it starts."""

    async def start(self) -> str:
        os._exit(1)


class RefusingInstance(StubInstance):
    async def start(self) -> str:
        raise ValueError("this model cannot be served")


class SleepyInstance(StubInstance):
    async def start(self) -> str:
        await asyncio.sleep(3600)
        raise AssertionError
