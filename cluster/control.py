"""ControlService: what an operator asks of the cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from ..handover.config import HandoverConfig
from ..handover.recall import sessions_of, to_wire
from ..policy.dispatch import Memory, NoInstance, redirect
from ..policy.journal import Journal
from ..policy.state import RequestShape
from ..proto import control_pb2 as pb
from ..proto import router_pb2
from ..proto.control_pb2_grpc import ControlServiceServicer
from .lifecycle import BEAT_S, Lifecycle
from .operation import Phase, Progress
from .overview import Overview, steady
from .recall import recall
from .refusal import Refused, refuse
from .registry import State
from .routers import AttachedRouter, Routers
from .supervisor import Supervisor

MODES = {
    pb.MOVE_MODE_UNSPECIFIED: router_pb2.MOVE_MODE_LIVE,
    pb.MOVE_MODE_LIVE: router_pb2.MOVE_MODE_LIVE,
    pb.MOVE_MODE_BLOCKING: router_pb2.MOVE_MODE_BLOCKING,
    pb.MOVE_MODE_RECOMPUTE: router_pb2.MOVE_MODE_RECOMPUTE,
}
RECALL_S = 2.0
"""How long routers and instances may take to say what they remember of a request."""
HELD_AFTER_BEATS = 3
"""A router lists its sessions at each heartbeat, so a request is known by then if it runs."""


WATCH_S = 0.5
"""How often a watched cluster is looked at."""
PHASES = {
    Phase.DRAINING: pb.PHASE_DRAINING,
    Phase.STARTING: pb.PHASE_STARTING,
    Phase.SERVING: pb.PHASE_SERVING,
    Phase.ENDED: pb.PHASE_ENDED,
}


class Control(ControlServiceServicer):
    """Answers by an overview, by the routers where requests are to be moved, by the lifecycle of instances."""

    def __init__(
        self,
        overview: Overview,
        lifecycle: Lifecycle,
        supervisor: Supervisor,
        routers: Routers,
        config: HandoverConfig,
        move_s: float,
        journal: Journal,
    ):
        self._overview = overview
        self._lifecycle = lifecycle
        self._supervisor = supervisor
        self._routers = routers
        self._config = config
        self._move_s = move_s
        self._journal = journal

    async def GetCluster(
        self, request: pb.GetClusterRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetClusterResponse:
        return self._overview.now(request.sessions)

    async def WatchCluster(
        self, request: pb.WatchClusterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        said, said_at = None, 0.0
        while True:
            now = self._overview.now(request.sessions)
            if steady(now) != said or time.monotonic() - said_at > BEAT_S:
                said, said_at = steady(now), time.monotonic()
                yield pb.WatchClusterResponse(cluster=now)
            await asyncio.sleep(WATCH_S)

    async def DrainInstance(
        self, request: pb.DrainInstanceRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DrainInstanceResponse]:
        async for progress in _told(self._lifecycle.drain(request.instance), context):
            yield pb.DrainInstanceResponse(progress=progress)

    async def FlipInstance(
        self, request: pb.FlipInstanceRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.FlipInstanceResponse]:
        async for progress in _told(self._lifecycle.flip(request.instance, request.pool), context):
            yield pb.FlipInstanceResponse(progress=progress)

    async def RestartInstances(
        self, request: pb.RestartInstancesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.RestartInstancesResponse]:
        async for progress in _told(self._lifecycle.restart(request.instances), context):
            yield pb.RestartInstancesResponse(progress=progress)

    async def ScalePool(
        self, request: pb.ScalePoolRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ScalePoolResponse]:
        async for progress in _told(self._lifecycle.scale(request.pool, request.instances), context):
            yield pb.ScalePoolResponse(progress=progress)

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
        decisions = [*told.decisions, *self._journal.of(sessions_of(request.request_id))]
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
            refuse(grpc.StatusCode.INVALID_ARGUMENT, f"no move mode {request.mode}")
        if request.destination:
            self._check_destination(request.destination)
        found = await self._find(request)
        destinations = self._destinations(request, [held for _, held in found])
        return list(
            await asyncio.gather(
                *(
                    self._move(router, held, destination, request.mode, deadline)
                    for (router, held), destination in zip(found, destinations, strict=True)
                )
            )
        )

    async def _find(
        self, request: pb.MigrateRequestRequest
    ) -> list[tuple[AttachedRouter, router_pb2.HeldSession]]:
        if not request.request_id:
            refuse(grpc.StatusCode.INVALID_ARGUMENT, "request_id must not be empty")
        for _ in range(HELD_AFTER_BEATS):
            found = self._routers.holding(request.request_id)
            if request.HasField("choice"):
                found = [pair for pair in found if pair[1].choice == request.choice]
            if found:
                return found
            await asyncio.sleep(self._config.heartbeat_s)
        what = f"choice {request.choice} of request" if request.HasField("choice") else "request"
        refuse(grpc.StatusCode.NOT_FOUND, f"no {what} {request.request_id} runs here")

    def _check_destination(self, name: str) -> None:
        registry = self._supervisor.registry
        if name not in registry:
            names = ", ".join(sorted(registry.records))
            refuse(grpc.StatusCode.NOT_FOUND, f"no instance {name}; there are {names}")
        record = registry[name]
        if record.state != State.SERVING:
            text = f"{name} takes no request: it is {record.state.value}"
            refuse(
                grpc.StatusCode.FAILED_PRECONDITION, f"{text} ({record.reason})" if record.reason else text
            )
        if refusal := self._supervisor.refusal(record.incarnation):
            refuse(grpc.StatusCode.FAILED_PRECONDITION, f"{name} takes no request: {refusal}")
        if not record.spec.decode_slots:
            refuse(grpc.StatusCode.FAILED_PRECONDITION, f"{name} does not decode")

    def _destinations(
        self, request: pb.MigrateRequestRequest, sessions: Sequence[router_pb2.HeldSession]
    ) -> list[str]:
        """Where each is to go: to whom the request names, else to whom the policy picks that routers ask too."""
        if request.destination:
            if any(held.owner == request.destination for held in sessions):
                text = f"{request.request_id} runs on {request.destination} already"
                refuse(grpc.StatusCode.FAILED_PRECONDITION, text)
            return [request.destination for _ in sessions]
        now, memory = time.monotonic(), Memory()
        views, names = self._supervisor.views(now), []
        for held in sessions:
            shape = RequestShape(prompt_tokens=held.prompt_tokens + held.emitted_tokens)
            here = frozenset(view.key for view in views if view.name == held.owner)
            found, memory = redirect(shape, views, here, now, secrets.randbits(32), memory)
            if isinstance(found, NoInstance):
                refuse(grpc.StatusCode.FAILED_PRECONDITION, found.reason)
            names.append(found.name)
        return names

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


async def _told(
    steps: AsyncIterator[Progress], context: grpc.aio.ServicerContext
) -> AsyncIterator[pb.Progress]:
    """The steps as messages, and one more that says that all is done."""
    began = time.monotonic()
    last = pb.Progress()
    try:
        async for step in steps:
            last = pb.Progress(
                instance=step.instance,
                phase=PHASES[step.phase],
                requests=step.left,
                recovered=step.recovered,
                seconds=time.monotonic() - began,
            )
            yield last
    except Refused as refused:
        await context.abort(refused.code, refused.text)
    last.done, last.seconds = True, time.monotonic() - began
    yield last
