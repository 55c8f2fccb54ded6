"""RouterService: the routers that are attached, what each holds, and the moves asked of them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import grpc.aio

from ..handover.recall import from_wire
from ..handover.values import Incarnation
from ..policy.journal import Decision
from ..proto import router_pb2 as pb
from ..proto.router_pb2_grpc import RouterServiceServicer
from .registry import Record, State

logger = logging.getLogger(__name__)

HELLO_S = 5.0
"""How long a new stream may take to say who it is."""
SILENT_S = 5.0
"""A router that says nothing for so long, not even that it lives, hangs, and is attached no more."""
BEAT_S = 0.1
MOST_ASKS = 1024
"""Moves that may be under way at a time."""


class MoveResult(NamedTuple):
    """What became of a move; `seconds` from the ask to the first token of the new owner."""

    done: bool
    reason: str
    seconds: float
    source: str


@dataclass(eq=False)
class AttachedRouter:
    """One router's stream: what it said last, and what it is still to hear."""

    hello: pb.RouterHello
    sessions: dict[str, pb.HeldSession] = field(default_factory=dict)
    instances: pb.Instances | None = None
    """To be sent next; a newer one replaces it."""
    attainment: pb.Attainment = field(default_factory=pb.Attainment)
    """How its requests fared since it began."""
    waiting: pb.Waiting = field(default_factory=pb.Waiting)
    """Its requests that wait for instances."""
    refused: dict[Incarnation, str] = field(default_factory=dict)
    """Instances that it does not use though they answer, and why."""
    asks: list[pb.AskMove] = field(default_factory=list)
    recalls: list[pb.Recall] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    heard: bool = False


@dataclass
class _Ask:
    router: AttachedRouter
    destination: str
    session: str
    result: asyncio.Future[MoveResult]


class Routers(RouterServiceServicer):
    """Serves every router. `on_lost(incarnation, condemned)` hears of instances that a router cannot reach, and
    `on_silent(hello)` of routers that hang.
    """

    def __init__(
        self,
        cluster: str,
        model: str,
        on_lost: Callable[[Incarnation, bool], None],
        on_silent: Callable[[pb.RouterHello], None],
    ):
        self._cluster = cluster
        self._model = model
        self._on_lost = on_lost
        self._on_silent = on_silent
        self._attached: dict[str, AttachedRouter] = {}
        self._instances = pb.Instances(cluster=cluster, model=model)
        self._numbers = itertools.count(
            time.time_ns()
        )  # an answer to an earlier controller's ask matches none of ours
        self._asks: dict[int, _Ask] = {}
        self._recalls: dict[int, asyncio.Future[list[Decision]]] = {}

    @property
    def attached(self) -> list[AttachedRouter]:
        return list(self._attached.values())

    def holding(self, request_id: str) -> list[tuple[AttachedRouter, pb.HeldSession]]:
        """The sessions of a request, by choice."""
        found = [
            (router, held)
            for router in self._attached.values()
            for held in router.sessions.values()
            if held.request_id == request_id
        ]
        return sorted(found, key=lambda pair: pair[1].choice)

    def tell(self, usable: Iterable[Record]) -> None:
        """Every router hears which instances may be used from now on."""
        instances = [_info(record) for record in usable]
        self._instances = pb.Instances(cluster=self._cluster, model=self._model, instances=instances)
        for router in self._attached.values():
            router.instances = self._instances
            router.wake.set()

    def refusal(self, instance: Incarnation) -> str:
        """Which routers do not use an instance, and why; empty where all do."""
        said = (
            f"{router.hello.name} does not use it: {router.refused[instance]}"
            for router in self._attached.values()
            if instance in router.refused
        )
        return "; ".join(said)

    def _life(self, name: str) -> int:
        """Of the instance that routers use by that name; 0 where there is none."""
        return next((one.life for one in self._instances.instances if one.name == name), 0)

    async def move(
        self,
        router: AttachedRouter,
        session: str,
        destination: str,
        mode: pb.MoveMode,
        reason: str,
        timeout_s: float,
    ) -> MoveResult:
        """Ask the session's router for a move and wait for what becomes of it; a timeout is a move not done."""
        if len(self._asks) >= MOST_ASKS:
            return MoveResult(False, f"{MOST_ASKS} moves are under way already", 0.0, "")
        number = next(self._numbers)
        ask = _Ask(router, destination, session, asyncio.get_running_loop().create_future())
        self._asks[number] = ask
        message = pb.AskMove(ask=number, session=session, destination=destination, reason=reason, mode=mode)
        router.asks.append(message)
        router.wake.set()
        try:
            return await asyncio.wait_for(ask.result, timeout_s)
        except TimeoutError:
            return MoveResult(False, f"its router did not answer within {timeout_s:g} s", 0.0, "")
        finally:
            del self._asks[number]
            if message in router.asks:
                router.asks.remove(message)

    async def recall(self, router: AttachedRouter, request_id: str, timeout_s: float) -> list[Decision]:
        """What the router remembers of a request; TimeoutError where it does not say."""
        number = next(self._numbers)
        answer = self._recalls[number] = asyncio.get_running_loop().create_future()
        recall = pb.Recall(ask=number, request_id=request_id)
        router.recalls.append(recall)
        router.wake.set()
        try:
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._recalls[number]
            if recall in router.recalls:
                router.recalls.remove(recall)

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.AttachResponse]:
        try:
            async with asyncio.timeout(HELLO_S):
                first = await anext(aiter(request_iterator), pb.AttachRequest())
        except TimeoutError:
            first = pb.AttachRequest()
        if not first.HasField("hello") or not first.hello.name:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "the first message must be a hello with a name"
            )
        router = self._attach(first.hello)
        hearing = asyncio.create_task(self._hear(router, request_iterator))
        hearing.add_done_callback(lambda _: router.wake.set())
        try:
            while not hearing.done():
                router.wake.clear()
                for response in _due(router):
                    yield response
                await router.wake.wait()
            hearing.result()
        finally:
            hearing.cancel()
            self._detach(router)

    def _attach(self, hello: pb.RouterHello) -> AttachedRouter:
        logger.info("router %s at %s attached", hello.name, hello.address)
        router = AttachedRouter(hello, instances=self._instances)
        older = self._attached.get(hello.name)
        self._attached[hello.name] = router
        if older is not None:
            self._fail_asks(older)
        return router

    def _detach(self, router: AttachedRouter) -> None:
        logger.info("router %s went away", router.hello.name)
        if self._attached.get(router.hello.name) is router:
            del self._attached[router.hello.name]
        self._fail_asks(router)

    def _fail_asks(self, router: AttachedRouter) -> None:
        for ask in self._asks.values():
            if ask.router is router and not ask.result.done():
                ask.result.set_result(MoveResult(False, "its router went away", 0.0, ""))

    async def _hear(self, router: AttachedRouter, requests: AsyncIterator[pb.AttachRequest]) -> None:
        """Listen until the stream ends or the router hangs.

        Its silence is counted in beats that this process waited out: where this one stood still, that says nothing
        of the router.
        """
        listening = asyncio.create_task(self._listen(router, requests))
        missed = 0
        try:
            while not listening.done() and missed * BEAT_S < SILENT_S:
                router.heard = False
                await asyncio.wait([listening], timeout=BEAT_S)
                missed = 0 if router.heard else missed + 1
            if listening.done():
                return listening.result()
            logger.warning("router %s has been silent for %g s", router.hello.name, SILENT_S)
            if self._attached.get(router.hello.name) is router:
                self._on_silent(router.hello)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self, router: AttachedRouter, requests: AsyncIterator[pb.AttachRequest]) -> None:
        async for request in requests:
            router.heard = True
            self._take(router, request)

    def _take(self, router: AttachedRouter, request: pb.AttachRequest) -> None:
        match request.WhichOneof("message"):
            case "sessions":
                router.sessions = {held.session: held for held in request.sessions.sessions}
            case "moved":
                self._moved(request.moved)
            case "recalled":
                answer = self._recalls.get(request.recalled.ask)
                if answer is not None and not answer.done():
                    answer.set_result(from_wire(request.recalled.decisions))
            case "lost":
                lost = request.lost
                self._on_lost(Incarnation(lost.name, lost.life), lost.condemned)
            case "attainment":
                router.attainment = request.attainment
            case "waiting":
                router.waiting = request.waiting
            case "refused":
                router.refused = {
                    Incarnation(one.name, one.life): one.reason for one in request.refused.instances
                }

    def _moved(self, moved: pb.Moved) -> None:
        ask = self._asks.get(moved.ask)
        if ask is None or ask.result.done():
            return
        held = ask.router.sessions.get(ask.session)
        if moved.done and held is not None:
            held.owner = ask.destination  # the next move may be asked before the router's next list
            held.owner_life = self._life(ask.destination)
        ask.result.set_result(MoveResult(moved.done, moved.reason, moved.seconds, moved.source))


def _due(router: AttachedRouter) -> list[pb.AttachResponse]:
    """What the router is to hear now: instances first, since a move may name a new one."""
    responses = [pb.AttachResponse(ask_move=ask) for ask in router.asks]
    responses += [pb.AttachResponse(recall=recall) for recall in router.recalls]
    if router.instances is not None:
        responses.insert(0, pb.AttachResponse(instances=router.instances))
    router.asks, router.recalls, router.instances = [], [], None
    return responses


def _info(record: Record) -> pb.InstanceInfo:
    assert record.running is not None
    return pb.InstanceInfo(
        name=record.spec.name,
        life=record.life,
        address=record.running.address,
        pool=record.spec.pool,
        prefill_tokens=record.spec.prefill_tokens,
        decode_slots=record.spec.decode_slots,
        draining=record.state == State.DRAINING,
    )
