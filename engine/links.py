"""The streams of the routers: what each is told, and whether it still shows life."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import grpc
import grpc.aio

from ..handover import wire
from ..handover.config import HandoverConfig
from ..handover.effects import Beat, RouterSilent
from ..handover.frames import InstanceFrame, RouterFrame, Step, Welcome
from ..handover.seat import Seat
from ..handover.values import News
from ..policy.state import LoadView
from ..proto import worker_pb2 as pb
from .engine import Engine

logger = logging.getLogger(__name__)

OUT_QUEUE = 16384
"""Frames that a router may be behind before its stream is cut."""


class Links:
    """One stream for each router: a later one takes the place of an earlier. Belongs to one event loop."""

    def __init__(
        self,
        engine: Engine,
        config: HandoverConfig,
        welcome: Welcome,
        take: Callable[[str, RouterFrame], Awaitable[None]],
    ):
        """`take` is given what routers say, one frame after the other; ValueError ends the stream of its router."""
        self._engine = engine
        self._handover = config
        self._welcome = welcome
        self._take = take
        self._queues: dict[str, asyncio.Queue[InstanceFrame]] = {}
        self._heard_at: dict[str, float] = {}
        self._told_at: dict[str, float] = {}

    def __contains__(self, router: str) -> bool:
        """Whether its stream is open."""
        return router in self._queues

    def tell(self, router: str, frame: InstanceFrame) -> None:
        queue = self._queues.get(router)
        if queue is None:
            return  # it hears all that it has not seen when it comes back
        try:
            queue.put_nowait(frame)
            self._told_at[router] = time.monotonic()
        except asyncio.QueueFull:
            logger.warning("router %s does not drain its stream; it is cut", router)
            del self._queues[router]

    def tell_all(self, frame: InstanceFrame) -> None:
        for router in list(self._queues):
            self.tell(router, frame)

    def beat(self, now: float) -> None:
        """Show life to routers that have heard nothing for a heartbeat, and give up those that show none."""
        load = replace(self._engine.load, idle_s=now - self._engine.alive_at)
        for router in list(self._queues):
            if now - self._told_at.get(router, 0.0) >= self._handover.heartbeat_s:
                self.tell(router, self._heartbeat(router, load))
        for router, _ in self._engine.sessions:
            self._heard_at.setdefault(router, now)  # of a sequence that arrived from elsewhere
        for router, heard_at in list(self._heard_at.items()):
            if now - heard_at > self._handover.grace_s:
                del self._heard_at[router]
                self._engine.post_all(RouterSilent(), _held_by(router))

    def _heartbeat(self, router: str, load: LoadView) -> Step:
        news: tuple[News, ...] = tuple(news for holder, news in self._engine.sessions if holder == router)
        return Step(news, load)

    async def serve(
        self, router: str, requests: AsyncIterator[pb.LinkRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Until the router ends, or hangs, or has another stream in its place."""
        queue: asyncio.Queue[InstanceFrame] = asyncio.Queue(OUT_QUEUE)
        self._queues[router] = queue
        self._heard_at[router] = time.monotonic()
        queue.put_nowait(self._welcome)
        queue.put_nowait(Step((), self._engine.load))
        self._engine.post_all(Beat(), _held_by(router))
        reader = asyncio.create_task(self._hear(router, requests), name=f"from {router}")
        try:
            while self._queues.get(router) is queue and not reader.done():
                try:
                    async with asyncio.timeout(self._handover.heartbeat_s):
                        frame = await queue.get()
                except TimeoutError:
                    continue
                if not await self._write(router, frame, context):
                    break
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                logger.info("the stream of router %s broke: %s", router, reader.exception())
            if reader.done() and not reader.cancelled() and isinstance(reader.exception(), ValueError):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(reader.exception()))
        finally:
            reader.cancel()
            if self._queues.get(router) is queue:
                del self._queues[router]

    async def _write(self, router: str, frame: InstanceFrame, context: grpc.aio.ServicerContext) -> bool:
        """Say it; whether the router took it within the time for which its sequences are kept.

        What gRPC holds of such a call goes with the connection: while a message is stuck it can end no call, nor abort.
        """
        try:
            async with asyncio.timeout(self._handover.grace_s):
                await context.write(wire.to_link_response(frame))
        except TimeoutError:
            logger.warning(
                "router %s took nothing for %g s; its stream is cut", router, self._handover.grace_s
            )
            return False
        return True

    async def _hear(self, router: str, requests: AsyncIterator[pb.LinkRequest]) -> None:
        async for request in requests:
            self._heard_at[router] = time.monotonic()
            await self._take(router, wire.from_link_request(request))


def _held_by(router: str) -> Callable[[Seat], bool]:
    def wanted(seat: Seat) -> bool:
        return seat.holding is not None and seat.holding.router == router

    return wanted
