"""The controller's Link to one life of an instance: its load views, its heartbeat, and writers it wants ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio

from ..handover.channel import CHANNEL
from ..handover.config import HandoverConfig
from ..handover.effects import Condemn
from ..handover.frames import Assign, Beat, Dead, Hello, Step
from ..handover.values import Incarnation
from ..handover.wire import from_link_response, to_link_request
from ..policy.state import LoadView
from ..proto import worker_pb2 as pb
from ..proto.worker_pb2_grpc import WorkerServiceStub

logger = logging.getLogger(__name__)

DEATHS_KEPT = 4096


class Deaths:
    """Lives that have ended for certain, the latest of them: what an instance may still hold for one is short-lived."""

    def __init__(self) -> None:
        self._lives: deque[Incarnation] = deque(maxlen=DEATHS_KEPT)
        self._count = 0

    def add(self, who: Incarnation) -> None:
        if who not in self._lives:
            self._lives.append(who)
            self._count += 1

    def since(self, told: int) -> tuple[tuple[Incarnation, ...], int]:
        """Those after the first `told`, and the count to ask with next."""
        news = min(self._count - told, len(self._lives))
        return tuple(self._lives)[len(self._lives) - news :], self._count


class Link:
    """Connects again and again, until the instance has been silent for too long."""

    def __init__(
        self,
        router: str,
        who: Incarnation,
        address: str,
        config: HandoverConfig,
        on_condemn: Callable[[Incarnation], None],
        on_load: Callable[[LoadView], None],
        dead: Deaths,
        assigned: Assign,
    ):
        """The instance hears of all the `dead`, and what is `assigned` to it."""
        self.load: LoadView | None = None
        self.assigned = assigned
        self._router = router
        self._who = who
        self._address = address
        self._config = config
        self._on_condemn = on_condemn
        self._on_load = on_load
        self._dead = dead
        self._heard_at = time.monotonic()
        self._heard = True

    @property
    def silent_s(self) -> float:
        """Seconds since the instance was last heard."""
        return time.monotonic() - self._heard_at

    async def until_silent(self) -> str:
        """Listen; return why the instance counts as hung.

        Silence is counted in heartbeats that this process waited out, not on a clock: where this process (or all of
        the machine) stood still, that says nothing of the instance.
        """
        listening = asyncio.create_task(self._listen())
        beats, missed = round(self._config.hung_after_s / self._config.heartbeat_s), 0
        try:
            while missed < beats:
                self._heard = False
                await asyncio.sleep(self._config.heartbeat_s)
                missed = 0 if self._heard else missed + 1
                if listening.done():
                    listening.result()  # it never ends by itself but by a defect
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        return f"silent for {self.silent_s:.1f} s"

    async def _listen(self) -> None:
        while True:
            try:
                async with grpc.aio.insecure_channel(self._address, options=CHANNEL) as channel:
                    stub = WorkerServiceStub(channel)
                    async for response in stub.Link(self._beats()):
                        self._hear(response)
            except (grpc.RpcError, ValueError, asyncio.InvalidStateError) as error:
                logger.info("link to %s broke: %s", self._who.instance, _reason(error))
            await asyncio.sleep(self._config.heartbeat_s)

    async def _beats(self) -> AsyncIterator[pb.LinkRequest]:
        yield to_link_request(Hello(self._router, self._who))
        told, assigned = 0, None
        while True:
            if self.assigned != assigned:
                assigned = self.assigned
                yield to_link_request(assigned)
            news, told = self._dead.since(told)
            yield to_link_request(Dead(news) if news else Beat())
            await asyncio.sleep(self._config.heartbeat_s)

    def _hear(self, response: pb.LinkResponse) -> None:
        self._heard, self._heard_at = True, time.monotonic()
        match from_link_response(response):
            case Step(load=LoadView() as load):
                self.load = load
                self._on_load(load)
            case Condemn(writer):
                logger.warning("%s asks for the end of %s", self._who.instance, writer.instance)
                self._on_condemn(writer)


def _reason(error: Exception) -> str:
    return (error.details() or error.code().name) if isinstance(error, grpc.aio.AioRpcError) else str(error)
