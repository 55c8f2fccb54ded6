"""The least that a router is: Links to instances and the shipped sessions over them, without dispatch or clients."""

from __future__ import annotations

import asyncio
import logging
import time
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
    began_at: Incarnation
    decode: Address | None = None
    records: list[TokenRecord] = field(default_factory=list)
    makers: list[str] = field(default_factory=list)
    """Who told each token first: its maker, or whoever took over before the maker's own word was here."""
    moves: list[bool] = field(default_factory=list)
    again: tuple[Address, Address | None] | None = None
    """Where it is prefilled, and decoded, when it has to be recovered."""
    recoveries: int = 0
    heard_at: float = 0.0

    @property
    def ids(self) -> list[int]:
        return [*self.context.emitted, *(record.id for record in self.records)]

    def went_on_at(self, *instances: str) -> bool:
        """It was begun once, and each of these has made tokens of it since: handed over, for nobody began it there.

        Nothing is asked of where it began: what that made may be told first by the next, whose commit carries it.
        """
        makers = set(self.makers)
        return set(instances) <= makers <= {*instances, self.began_at.instance} and not self.recoveries


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
        stream = self.streams[key] = Stream(
            context, session, prefill.incarnation, decode, heard_at=time.monotonic()
        )
        self._tell(stream, fx.Dispatched(prefill, decode))
        return stream

    def move(self, key: str, destination: Address, mode: MoveMode = MoveMode.LIVE) -> None:
        self._tell(self.streams[key], fx.MoveAsked(destination, mode))

    def lose(self, instance: Incarnation) -> None:
        """The instance counts as lost to what can be recovered, whether or not it lives."""
        for stream in self.streams.values():
            if stream.again is not None:
                self._tell(stream, fx.InstanceLost(instance))

    def nudge(self, key: str) -> None:
        self._tell(self.streams[key], fx.Nudge())

    def recover_silent(self, silence_s: float) -> None:
        """Recover what nobody spoke for so long of, where it is known where to."""
        now = time.monotonic()
        for stream in self.streams.values():
            if stream.again is not None and now - stream.heard_at > silence_s:
                stream.heard_at = now
                self._tell(stream, fx.Silent())

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
        stream = self.streams.get(message.session)
        if stream is not None:
            if message.epoch >= stream.session.epoch:
                stream.heard_at = time.monotonic()
            self._tell(stream, fx.FromInstance(sender, message))

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
            case fx.NeedDispatch(reason) if stream.again is not None:
                logger.info("%s is recovered: %s", stream.session.key, reason)
                stream.recoveries += 1
                self._tell(stream, fx.Dispatched(*stream.again))
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
