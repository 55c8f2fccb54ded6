"""ControlService: what an operator asks of the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import grpc
import grpc.aio

from ..handover.config import HandoverConfig
from ..handover.recall import sessions_of, to_wire
from ..policy.journal import Journal
from ..policy.state import LoadView
from ..proto import control_pb2 as pb
from ..proto import router_pb2
from ..proto.control_pb2_grpc import ControlServiceServicer
from .recall import recall
from .registry import Record, State, freest
from .routers import AttachedRouter, Routers
from .supervisor import Supervisor

MODES = {
    pb.MOVE_MODE_UNSPECIFIED: router_pb2.MOVE_MODE_LIVE,
    pb.MOVE_MODE_LIVE: router_pb2.MOVE_MODE_LIVE,
    pb.MOVE_MODE_BLOCKING: router_pb2.MOVE_MODE_BLOCKING,
    pb.MOVE_MODE_RECOMPUTE: router_pb2.MOVE_MODE_RECOMPUTE,
}
STATES = {
    State.STARTING: pb.INSTANCE_STATE_STARTING,
    State.SERVING: pb.INSTANCE_STATE_SERVING,
    State.DRAINING: pb.INSTANCE_STATE_DRAINING,
    State.LOST: pb.INSTANCE_STATE_LOST,
}
RECALL_S = 2.0
"""How long routers and instances may take to say what they remember of a request."""
HELD_AFTER_BEATS = 3
"""A router lists its sessions at each heartbeat, so a request is known by then if it runs."""


@dataclass
class Refused(Exception):
    """The call is refused with this code and sentence."""

    code: grpc.StatusCode
    text: str


class Control(ControlServiceServicer):
    """Answers from the supervisor's registry and the routers' lists. `rss_bytes` tells the memory of an instance."""

    def __init__(
        self,
        cluster: str,
        model: str,
        supervisor: Supervisor,
        routers: Routers,
        config: HandoverConfig,
        move_s: float,
        rss_bytes: Callable[[Record], int],
    ):
        self._cluster = cluster
        self._model = model
        self._supervisor = supervisor
        self._routers = routers
        self._config = config
        self._move_s = move_s
        self._rss_bytes = rss_bytes
        self.journal = Journal("controller", time.time)

    async def GetCluster(
        self, request: pb.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetClusterResponse:
        records = self._supervisor.registry.records.values()
        attached = self._routers.attached
        return pb.GetClusterResponse(
            cluster=self._cluster,
            model=self._model,
            instances=[self._instance(record) for record in records],
            routers=[_router(router) for router in attached],
            sessions=[
                _session(router, held)
                for router in attached
                for held in router.sessions.values()
                if request.sessions
            ],
        )

    async def MigrateRequest(
        self, request: pb.MigrateRequestRequest, context: grpc.aio.ServicerContext
    ) -> pb.MigrateRequestResponse:
        try:
            moves = await self._migrate(request, time.monotonic() + self._time_left_s(context))
        except Refused as refused:
            await context.abort(refused.code, refused.text)
        return pb.MigrateRequestResponse(moves=moves)

    async def ExplainRequest(
        self, request: pb.ExplainRequestRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExplainRequestResponse:
        if not request.request_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id must not be empty")
        records = list(self._supervisor.registry.usable())
        told = await recall(request.request_id, self._routers, records, RECALL_S)
        decisions = [*told.decisions, *self.journal.of(sessions_of(request.request_id))]
        if not decisions:
            silent = f"; {', '.join(told.silent)} did not answer" if told.silent else ""
            text = f"nobody remembers a request {request.request_id}{silent}"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        decisions.sort(key=lambda decision: decision.at)
        return pb.ExplainRequestResponse(decisions=to_wire(decisions), silent=told.silent)

    def _time_left_s(self, context: grpc.aio.ServicerContext) -> float:
        left = context.time_remaining()
        return self._move_s if left is None else min(self._move_s, left)

    async def _migrate(self, request: pb.MigrateRequestRequest, deadline: float) -> list[pb.Move]:
        if request.mode not in MODES:
            _refuse(grpc.StatusCode.INVALID_ARGUMENT, f"no move mode {request.mode}")
        if request.destination:
            self._check_destination(request.destination)
        found = await self._find(request)
        plan = [(router, held, self._destination(request, held)) for router, held in found]
        return list(
            await asyncio.gather(
                *(
                    self._move(router, held, destination, request.mode, deadline)
                    for router, held, destination in plan
                )
            )
        )

    async def _find(
        self, request: pb.MigrateRequestRequest
    ) -> list[tuple[AttachedRouter, router_pb2.HeldSession]]:
        if not request.request_id:
            _refuse(grpc.StatusCode.INVALID_ARGUMENT, "request_id must not be empty")
        for _ in range(HELD_AFTER_BEATS):
            found = self._routers.holding(request.request_id)
            if request.HasField("choice"):
                found = [pair for pair in found if pair[1].choice == request.choice]
            if found:
                return found
            await asyncio.sleep(self._config.heartbeat_s)
        what = f"choice {request.choice} of request" if request.HasField("choice") else "request"
        _refuse(grpc.StatusCode.NOT_FOUND, f"no {what} {request.request_id} runs here")

    def _check_destination(self, name: str) -> None:
        registry = self._supervisor.registry
        if name not in registry:
            names = ", ".join(sorted(registry.records))
            _refuse(grpc.StatusCode.NOT_FOUND, f"no instance {name}; there are {names}")
        record = registry[name]
        if record.state != State.SERVING:
            text = f"{name} takes no request: it is {record.state.value}"
            _refuse(
                grpc.StatusCode.FAILED_PRECONDITION, f"{text} ({record.reason})" if record.reason else text
            )
        if not record.spec.decode_slots:
            _refuse(grpc.StatusCode.FAILED_PRECONDITION, f"{name} does not decode")

    def _destination(self, request: pb.MigrateRequestRequest, held: router_pb2.HeldSession) -> str:
        if request.destination:
            if request.destination == held.owner:
                text = f"{request.request_id} runs on {held.owner} already"
                _refuse(grpc.StatusCode.FAILED_PRECONDITION, text)
            return request.destination
        best = freest(self._supervisor.registry.records.values(), self._loads(), but=held.owner)
        if best is None:
            _refuse(grpc.StatusCode.FAILED_PRECONDITION, "there is no other instance that decodes")
        return best.spec.name

    async def _move(
        self,
        router: AttachedRouter,
        held: router_pb2.HeldSession,
        destination: str,
        mode: pb.MoveMode,
        deadline: float,
    ) -> pb.Move:
        left_s = max(0.0, deadline - time.monotonic())
        result = await self._routers.move(
            router, held.session, destination, MODES[mode], "an operator asked for it", left_s
        )
        return pb.Move(
            choice=held.choice,
            source=result.source or held.owner,
            destination=destination,
            done=result.done,
            reason=result.reason,
            seconds=result.seconds,
        )

    def _loads(self) -> dict[str, LoadView]:
        names = self._supervisor.registry.records
        loads = {name: self._supervisor.load(name) for name in names}
        return {name: load for name, load in loads.items() if load is not None}

    def _instance(self, record: Record) -> pb.Instance:
        name = record.spec.name
        load = self._supervisor.load(name) or LoadView()
        role = pb.Role(prefill_tokens=record.spec.prefill_tokens, decode_slots=record.spec.decode_slots)
        instance = pb.Instance(
            name=name,
            life=record.life,
            pool=record.spec.pool,
            state=STATES[record.state],
            role=role,
            blocks=_blocks(load),
            waiting=load.waiting,
            running=load.running,
            heartbeat_age_s=self._supervisor.silent_s(name),
            restarts=record.restarts,
            work=_work(load),
        )
        if record.running is not None:
            instance.address, instance.pid = record.running.address, record.running.pid
            instance.rss_bytes = self._rss_bytes(record)
        return instance


def _refuse(code: grpc.StatusCode, text: str) -> NoReturn:
    raise Refused(code, text)


def _work(load: LoadView) -> pb.Work:
    return pb.Work(
        steps=load.steps,
        asked_tokens=load.asked_tokens,
        hit_tokens=load.hit_tokens,
        preemptions=load.preemptions,
        swapped_blocks=load.swapped_blocks,
        written_blocks=load.written_blocks,
        sent_blocks=load.sent_blocks,
    )


def _blocks(load: LoadView) -> pb.Blocks:
    return pb.Blocks(
        total=load.total_blocks,
        free=load.free_blocks,
        cached=load.cached_blocks,
        held=load.held_blocks,
        leased=load.leased_blocks,
        quarantined=load.quarantined_blocks,
    )


def _router(router: AttachedRouter) -> pb.Router:
    hello = router.hello
    return pb.Router(name=hello.name, address=hello.address, pid=hello.pid, sessions=len(router.sessions))


def _session(router: AttachedRouter, held: router_pb2.HeldSession) -> pb.Session:
    return pb.Session(
        request_id=held.request_id,
        choice=held.choice,
        router=router.hello.name,
        owner=held.owner,
        prompt_tokens=held.prompt_tokens,
        emitted_tokens=held.emitted_tokens,
    )
