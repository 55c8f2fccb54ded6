"""One stream to each incarnation of an instance: what it says goes to a listener, what is told goes out in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import grpc
import grpc.aio

from ..handover import wire
from ..handover.channel import CHANNEL
from ..handover.config import HandoverConfig
from ..handover.effects import Condemn
from ..handover.frames import Beat, Hello, RouterFrame, SeenBatch, Step, Welcome
from ..handover.values import Ask, Incarnation, InstanceMessage, RouterMessage, Seen, Unmoved
from ..policy.state import InstanceView, LoadView
from ..proto.worker_pb2_grpc import WorkerServiceStub
from .config import ModelInfo

logger = logging.getLogger(__name__)

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0


class Listener(Protocol):
    """Who hears what links bring."""

    def heard(self, sender: Incarnation, message: InstanceMessage) -> None: ...

    def lost(self, instance: Incarnation, reason: str) -> None:
        """The instance is hung, dead or dropped. It may come back under the same incarnation if it was only hung."""

    def condemned(self, writer: Incarnation) -> None:
        """An instance asks for the end of another that does not answer `stop`."""


class StreamBroken(Exception):
    """The stream to an instance has ended, or means nothing any more."""


class Link:
    """The stream to one incarnation: made anew when it breaks. What is told meanwhile is lost.

    One whose instance serves another model than `unfit` allows carries nothing.
    """

    def __init__(
        self,
        listed: InstanceView,
        router: str,
        cfg: HandoverConfig,
        queue: int,
        listener: Listener,
        unfit: Callable[[Welcome], str],
    ):
        self.listed = listed
        self.incarnation = Incarnation(listed.name, listed.life)
        self._router = router
        self._cfg = cfg
        self._queue = queue
        self._listener = listener
        self._unfit = unfit
        self.refused = ""
        """Why the instance is not used, by its last welcome; empty where it is, or where none came."""
        self.fingerprint = ""
        """Of the instance's model, while it is linked."""
        self._linked = False
        self._heard = False
        self._lost = True  # nobody misses it before it was there
        self.load: LoadView | None = None
        self._load_at = 0.0
        self._out: deque[RouterFrame] = deque()
        self._seen: dict[str, Seen] = {}
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._overrun = asyncio.Event()
        """More waits than may: the stream is to be broken."""
        self._task = asyncio.create_task(self._run(), name=f"link to {listed.name}")

    @property
    def view(self) -> InstanceView:
        """What policies may know; not alive until the stream has brought a load view."""
        if self.load is None:
            return replace(self.listed, alive=False)
        draining = self.listed.draining or self.load.draining
        return replace(
            self.listed, load=self.load, seen_at=self._load_at, alive=self._linked, draining=draining
        )

    def tell(self, message: RouterMessage) -> None:
        """Send soon, or never where the stream is broken: no party may depend on one message."""
        if not self._linked or self._overrun.is_set():
            return
        if isinstance(message, Seen):
            self._seen[message.session] = message
        else:
            self._out.append(message)
        if self.waiting > self._queue:
            self._overrun.set()
        self._sent.clear()
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Messages that were told and are not on their way yet; at most one more than `queue`."""
        return len(self._out) + len(self._seen)

    async def close(self) -> None:
        """Send what was told already, and end the stream."""
        if self._linked:
            try:
                async with asyncio.timeout(self._cfg.hung_after_s):
                    await self._sent.wait()
            except TimeoutError:
                logger.info("%s does not take the last messages", self.incarnation)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # ---- the stream

    async def _run(self) -> None:
        delay = 0.0
        while True:
            try:
                await self._stream()
            except (
                grpc.RpcError,
                StreamBroken,
                TimeoutError,
                ValueError,
                asyncio.InvalidStateError,
            ) as error:
                reason = _reason(error)
            except Exception as error:  # noqa: BLE001  the link must outlive it, or the instance is never used again
                logger.exception("a defect in the link to %s", self.incarnation)
                reason = repr(error)
            else:
                reason = "the stream ended"
            was_linked, self._linked = self._linked, False
            self.fingerprint = ""
            if was_linked:
                delay = 0.0  # a process that has died refuses the next try, and that is how its loss is known here
                logger.info("link to %s broke: %s", self.incarnation, reason)
                if reason == HUNG:
                    self._declare_lost(reason)
            else:
                self._declare_lost(reason)
                delay = min(max(2 * delay, FIRST_RETRY_S), LAST_RETRY_S)
            await asyncio.sleep(delay)

    def _declare_lost(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._listener.lost(self.incarnation, reason)

    async def _stream(self) -> None:
        self._out.clear()
        self._seen.clear()
        self._overrun.clear()
        async with grpc.aio.insecure_channel(self.listed.address, options=CHANNEL) as channel:
            call = WorkerServiceStub(channel).Link()
            works = (self._read(call), self._write(call), self._watch(), self._watch_queue())
            ends = [asyncio.create_task(work) for work in works]
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                done.pop().result()
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
                call.cancel()

    async def _read(self, call: Any) -> None:
        async for response in call:
            self._heard = True
            self._take(wire.from_link_response(response))

    async def _watch(self) -> None:
        """Ends when nothing has been heard for too long.

        Counted in heartbeats that this process waited out: where it stood still itself, that says nothing of others.
        """
        missed = 0
        while missed * self._cfg.heartbeat_s < self._cfg.hung_after_s:
            self._heard = False
            await asyncio.sleep(self._cfg.heartbeat_s)
            missed = 0 if self._heard else missed + 1
        raise TimeoutError

    async def _watch_queue(self) -> None:
        await self._overrun.wait()
        raise StreamBroken(f"the instance does not drain its stream: {self._queue} messages wait")

    def _take(self, frame: Any) -> None:
        if not self._linked and not isinstance(frame, Welcome):
            raise StreamBroken("the instance spoke before its welcome")
        match frame:
            case Step(news, load):
                if load is not None:
                    self.load, self._load_at = load, time.monotonic()
                for message in news:
                    self._listener.heard(self.incarnation, message)
            case Unmoved() | Ask():
                self._listener.heard(self.incarnation, frame)
            case Welcome():
                self._enter(frame)
            case Condemn(writer):
                self._listener.condemned(writer)

    def _enter(self, welcome: Welcome) -> None:
        if welcome.incarnation != self.incarnation:
            raise StreamBroken(f"{welcome.incarnation} answers instead")
        unfit = self._unfit(welcome)
        if unfit:
            self._refuse(unfit)
            raise StreamBroken(unfit)
        self.refused, self.fingerprint = "", welcome.fingerprint
        self._linked, self._lost = True, False

    def _refuse(self, reason: str) -> None:
        """The next welcome may fit, but this is said once."""
        if reason != self.refused:
            self.refused, self._lost = reason, True
            logger.error("%s is not used: %s", self.incarnation, reason)
            self._listener.lost(self.incarnation, reason)

    async def _write(self, call: Any) -> None:
        """What was told since the last write, all seen of a step in one message; a beat where that is nothing."""
        await self._put(call, Hello(self._router, self.incarnation))
        while True:
            try:
                async with asyncio.timeout(self._cfg.heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                self._out.append(Beat())
            self._wake.clear()
            if self._seen:
                self._out.append(SeenBatch(tuple(self._seen.values())))
                self._seen.clear()
            while self._out:
                await self._put(call, self._out.popleft())
            self._sent.set()

    async def _put(self, call: Any, frame: RouterFrame) -> None:
        """An instance may be alive and read nothing: that breaks the stream, and does not make it lost."""
        try:
            async with asyncio.timeout(self._cfg.hung_after_s):
                await call.write(wire.to_link_request(frame))
        except TimeoutError:
            raise StreamBroken("the instance does not drain its stream") from None


HUNG = "nothing was heard in time"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return HUNG
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


class Links:
    """The links to all instances that may be used: those of the router's `model`, all of equal weights."""

    def __init__(self, router: str, cfg: HandoverConfig, queue: int, listener: Listener, model: ModelInfo):
        self._router = router
        self._model = model
        self._cfg = cfg
        self._queue = queue
        self._listener = listener
        self._links: dict[Incarnation, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def set_instances(self, listed: Iterable[InstanceView]) -> None:
        """Link to these and to no others; an instance that is missing is lost."""
        wanted = {Incarnation(view.name, view.life): view for view in listed}
        for incarnation in self._links.keys() - wanted.keys():
            self._close(self._links.pop(incarnation))
            self._listener.lost(incarnation, "the controller dropped it")
        for incarnation, view in wanted.items():
            if incarnation in self._links:
                self._links[incarnation].listed = view
            else:
                self._links[incarnation] = Link(
                    view, self._router, self._cfg, self._queue, self._listener, self._unfit
                )

    def _unfit(self, welcome: Welcome) -> str:
        """Why an instance of this welcome may not be used; empty where it may."""
        model, linked = self._model, (link.fingerprint for link in self._links.values())
        if welcome.vocabulary != model.vocabulary:
            return (
                f"its vocabulary has {welcome.vocabulary} tokens, and that of {model.name} {model.vocabulary}"
            )
        if welcome.context_tokens < model.context_tokens:
            return (
                f"its context has {welcome.context_tokens} tokens, and {model.context_tokens} of {model.name} "
                "are promised"
            )
        if any(other not in ("", welcome.fingerprint) for other in linked):
            return "its weights are not those of the other instances"
        return ""

    def tell(self, instance: Incarnation, message: RouterMessage) -> None:
        if instance in self._links:
            self._links[instance].tell(message)

    def views(self) -> list[InstanceView]:
        return [link.view for link in self._links.values()]

    def view(self, instance: Incarnation) -> InstanceView | None:
        link = self._links.get(instance)
        return link.view if link else None

    @property
    def block_size(self) -> int:
        """Tokens of a block, the same at all instances; 0 while nobody told."""
        sizes = (link.load.block_size for link in self._links.values() if link.load)
        return next(sizes, 0)

    def refused(self) -> dict[Incarnation, str]:
        """The instances that are not used though they answer, and why."""
        return {incarnation: link.refused for incarnation, link in self._links.items() if link.refused}

    def drains(self, instance: Incarnation) -> bool:
        """Whether the instance itself says that it takes nothing more."""
        link = self._links.get(instance)
        return link is not None and link.load is not None and link.load.draining

    def step_s(self, instance: Incarnation) -> float:
        """Mean time of the instance's recent steps, as far as it is known."""
        link = self._links.get(instance)
        return link.load.step_s if link and link.load else 0.0

    async def close(self) -> None:
        for incarnation in list(self._links):
            self._close(self._links.pop(incarnation))
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _close(self, link: Link) -> None:
        task = asyncio.create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
