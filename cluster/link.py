"""The controller's Link to one life of an instance: its load views, its heartbeat, and writers it wants ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import grpc.aio

from ..handover.config import HandoverConfig
from ..handover.effects import Condemn
from ..handover.frames import Beat, Dead, Hello, Step
from ..handover.values import Incarnation
from ..handover.wire import from_link_response, to_link_request
from ..policy.state import LoadView
from ..proto import worker_pb2 as pb
from ..proto.worker_pb2_grpc import WorkerServiceStub

logger = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the backoff of the last
)


class Link:
    """Connects again and again, until the instance has been silent for too long."""

    def __init__(
        self,
        router: str,
        who: Incarnation,
        address: str,
        config: HandoverConfig,
        on_condemn: Callable[[Incarnation], None],
        dead: Sequence[Incarnation],
    ):
        """`dead`, which grows, are the lives that have ended for certain: the instance hears of each."""
        self.load: LoadView | None = None
        self._router = router
        self._who = who
        self._address = address
        self._config = config
        self._on_condemn = on_condemn
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
                async with grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                    stub = WorkerServiceStub(channel)
                    async for response in stub.Link(self._beats()):
                        self._hear(response)
            except (grpc.RpcError, ValueError, asyncio.InvalidStateError) as error:
                logger.info("link to %s broke: %s", self._who.instance, _reason(error))
            await asyncio.sleep(self._config.heartbeat_s)

    async def _beats(self) -> AsyncIterator[pb.LinkRequest]:
        yield to_link_request(Hello(self._router, self._who))
        told = 0
        while True:
            news, told = tuple(self._dead[told:]), len(self._dead)
            yield to_link_request(Dead(news) if news else Beat())
            await asyncio.sleep(self._config.heartbeat_s)

    def _hear(self, response: pb.LinkResponse) -> None:
        self._heard, self._heard_at = True, time.monotonic()
        match from_link_response(response):
            case Step(load=LoadView() as load):
                self.load = load
            case Condemn(writer):
                logger.warning("%s asks for the end of %s", self._who.instance, writer.instance)
                self._on_condemn(writer)


def _reason(error: Exception) -> str:
    return (error.details() or error.code().name) if isinstance(error, grpc.aio.AioRpcError) else str(error)
