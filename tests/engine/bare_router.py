"""The least that a router is: Links to instances and the shipped sessions over them, without dispatch or clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from penstock.handover import effects as fx
from penstock.handover.frames import Beat, Hello, RouterFrame, SeenBatch, Step
from penstock.handover.session import Session
from penstock.handover.values import (
    Address,
    Ask,
    Context,
    Incarnation,
    MoveMode,
    News,
    Seen,
    TokenRecord,
    Unmoved,
)
from penstock.handover.wire import from_link_response, to_link_request
from penstock.policy.state import LoadView
from penstock.proto import worker_pb2 as pb
from penstock.proto.worker_pb2_grpc import WorkerServiceStub

logger = logging.getLogger(__name__)

BEAT_S = 0.05


@dataclass
class Line:
    """A Link, and what came over it."""

    queue: asyncio.Queue = field(default_factory=asyncio.Queue)
    load: LoadView = LoadView()
    task: asyncio.Task | None = None


@dataclass
class Stream:
    context: Context
    session: Session
    decode: Address | None = None
    records: list[TokenRecord] = field(default_factory=list)
    makers: list[str] = field(default_factory=list)
    """Who made each token."""
    moves: list[bool] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.context.emitted, *(record.id for record in self.records)]


class BareRouter:
    """`start`, `move` and `cancel` sessions; what they hear stands in `streams`."""

    def __init__(self, name: str = "bare"):
        self.name = name
        self.lines: dict[Incarnation, Line] = {}
        self.streams: dict[str, Stream] = {}
        self.condemned: list[Incarnation] = []

    def connect(self, instance: Address) -> None:
        line = self.lines[instance.incarnation] = Line()
        line.task = asyncio.create_task(self._listen(instance, line))

    async def close(self) -> None:
        tasks = [line.task for line in self.lines.values() if line.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, key: str, context: Context, prefill: Address, decode: Address | None = None) -> Stream:
        session = Session(key, 1, next_index=len(context.emitted))
        stream = self.streams[key] = Stream(context, session, decode)
        self._tell(stream, fx.Dispatched(prefill, decode))
        return stream

    def move(self, key: str, destination: Address, mode: MoveMode = MoveMode.LIVE) -> None:
        self._tell(self.streams[key], fx.MoveAsked(destination, mode))

    def cancel(self, key: str) -> None:
        self._tell(self.streams[key], fx.Cancel())

    async def _listen(self, instance: Address, line: Line) -> None:
        while True:
            try:
                async with grpc.aio.insecure_channel(instance.at) as channel:
                    async for response in WorkerServiceStub(channel).Link(
                        self._say(instance.incarnation, line)
                    ):
                        self._hear(instance.incarnation, line, from_link_response(response))
            except grpc.RpcError:
                await asyncio.sleep(BEAT_S)

    async def _say(self, instance: Incarnation, line: Line) -> AsyncIterator[pb.LinkRequest]:
        yield to_link_request(Hello(self.name, instance))
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    frame = await line.queue.get()
            except TimeoutError:
                frame = Beat()
            yield to_link_request(frame)

    def _hear(self, sender: Incarnation, line: Line, frame) -> None:
        match frame:
            case Step(news, load):
                line.load = load or line.load
                for one in news:
                    self._told(sender, one)
            case Unmoved() | Ask():
                self._told(sender, frame)
            case fx.Condemn(writer):
                self.condemned.append(writer)

    def _told(self, sender: Incarnation, message: News | Unmoved | Ask) -> None:
        if message.session in self.streams:
            self._tell(self.streams[message.session], fx.FromInstance(sender, message))

    def _tell(self, stream: Stream, event: fx.SessionEvent) -> None:
        context = replace(stream.context, emitted=tuple(stream.ids))
        stream.session, effects = stream.session.on(event, context)
        for effect in effects:
            self._carry_out(stream, effect)

    def _carry_out(self, stream: Stream, effect: fx.SessionEffect) -> None:
        match effect:
            case fx.Tell(instance, message):
                self.send(instance, message)
            case fx.Deliver(first, records, maker):
                assert first == len(stream.ids), "a token came twice, or one is missing"
                stream.records += records
                stream.makers += [maker.instance] * len(records)
            case fx.MoveEnded(_, done, reason):
                logger.info("%s: %s", stream.session.key, "moved" if done else reason)
                stream.moves.append(done)
            case fx.NeedDestination(reason) if stream.decode is not None:
                logger.info("%s: the first handover failed: %s", stream.session.key, reason)
                again = fx.MoveAsked(stream.decode, first=True)
                asyncio.get_running_loop().call_later(BEAT_S, self._tell, stream, again)

    def send(self, instance: Incarnation, message: RouterFrame | Seen) -> None:
        if instance in self.lines:
            frame = SeenBatch((message,)) if isinstance(message, Seen) else message
            self.lines[instance].queue.put_nowait(frame)


async def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition of several parties."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
