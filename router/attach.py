"""The router's stream to the controller: instances and wanted moves come, sessions held and results go.

While the controller is away the router serves on with what it heard last.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import grpc
import grpc.aio

from ..handover.channel import CHANNEL
from ..handover.recall import to_wire
from ..policy.state import InstanceView, LoadView
from ..proto import router_pb2 as pb
from ..proto.router_pb2_grpc import RouterServiceStub
from .fleet import Mode, MoveWanted
from .router import Router

logger = logging.getLogger(__name__)

RETRY_S = 0.5
CONNECT_S = 5.0

MODES = {
    pb.MOVE_MODE_UNSPECIFIED: Mode.LIVE,
    pb.MOVE_MODE_LIVE: Mode.LIVE,
    pb.MOVE_MODE_BLOCKING: Mode.BLOCKING,
    pb.MOVE_MODE_RECOMPUTE: Mode.RECOMPUTE,
    pb.MOVE_MODE_UNBEGUN: Mode.UNBEGUN,
}


async def attach(router: Router, controller: str, address: str) -> None:
    """Keep the router attached to the controller at `controller` until cancelled; `address` is the router's own."""
    attached = True
    while True:
        try:
            await _attached(router, controller, address)
            reason = "the controller ended the stream"
            attached = True
        except (grpc.RpcError, TimeoutError, asyncio.InvalidStateError) as error:
            reason = str(error) or type(error).__name__
        except Exception as error:  # noqa: BLE001  without this task the router would never hear of an instance again
            logger.exception("a defect in the stream to the controller")
            reason = repr(error)
        if attached:
            logger.warning("detached from the controller at %s: %s", controller, reason)
        attached = False
        await asyncio.sleep(RETRY_S)


async def _attached(router: Router, controller: str, address: str) -> None:
    async with grpc.aio.insecure_channel(controller, options=CHANNEL) as channel:
        call = RouterServiceStub(channel).Attach()
        hello = pb.RouterHello(name=router.name, address=address, pid=os.getpid())
        async with asyncio.timeout(CONNECT_S):
            await call.write(pb.AttachRequest(hello=hello))
        ends = [asyncio.create_task(_listen(router, call)), asyncio.create_task(_report(router, call))]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            call.cancel()


async def _listen(router: Router, call: Any) -> None:
    async for response in call:
        _take(router, response)


def _take(router: Router, response: pb.AttachResponse) -> None:
    match response.WhichOneof("message"):
        case "instances" if response.instances.instances:  # one that has just come back may know of none yet
            router.set_instances([_listed(info) for info in response.instances.instances])
        case "ask_move":
            ask = response.ask_move
            mode = MODES.get(ask.mode, Mode.LIVE)
            router.want_move(MoveWanted(ask.ask, ask.session, ask.destination, mode, ask.reason))
        case "recall":
            router.recall(response.recall.ask, response.recall.request_id)


def _listed(info: pb.InstanceInfo) -> InstanceView:
    load = LoadView(prefill_tokens=info.prefill_tokens, decode_slots=info.decode_slots)
    return InstanceView(
        name=info.name,
        life=info.life,
        address=info.address,
        pool=info.pool,
        load=load,
        draining=info.draining,
    )


async def _report(router: Router, call: Any) -> None:
    """Every heartbeat, what has changed, or that the router lives."""
    told: list[pb.AttachRequest] = []
    while True:
        now = [
            pb.AttachRequest(sessions=_held(router)),
            pb.AttachRequest(attainment=_attainment(router)),
            pb.AttachRequest(waiting=_waiting(router)),
            pb.AttachRequest(refused=_refused(router)),
        ]
        news = [request for request in now if request not in told]
        told = now
        for request in [*news, *_due(router)] or [pb.AttachRequest()]:
            await _write(call, request)
        await asyncio.sleep(router.handover.heartbeat_s)


async def _write(call: Any, request: pb.AttachRequest) -> None:
    async with asyncio.timeout(CONNECT_S):
        await call.write(request)


def _held(router: Router) -> pb.SessionsHeld:
    return pb.SessionsHeld(
        sessions=[
            pb.HeldSession(
                session=session.key,
                request_id=session.call.request_id,
                choice=session.call.params.choice,
                owner=session.owner,
                prompt_tokens=len(session.call.prompt),
                emitted_tokens=len(session.emitted),
                priority=session.call.priority,
                remaining_tokens=router.remaining_tokens(session),
                movable=session.may_move or session.may_restart,
                owner_life=session.machine.owner.life if session.machine.owner else 0,
                waits=session.waits,
            )
            for session in router.sessions.values()
            if not session.closed
        ]
    )


def _attainment(router: Router) -> pb.Attainment:
    return pb.Attainment(**asdict(router.attainment))


def _waiting(router: Router) -> pb.Waiting:
    none, count = router.waiting()
    if none is None or not none.busy:
        return pb.Waiting()
    return pb.Waiting(decode=count) if none.decoding else pb.Waiting(prefill=count)


def _refused(router: Router) -> pb.RefusedInstances:
    refused = router.links.refused().items()
    return pb.RefusedInstances(
        instances=[pb.RefusedInstance(name=name, life=life, reason=why) for (name, life), why in refused]
    )


def _due(router: Router) -> Iterator[pb.AttachRequest]:
    """Results of moves, what was recalled, and lost instances, each told once."""
    while router.moves:
        result = router.moves.popleft()
        moved = pb.Moved(
            ask=result.ask,
            done=result.done,
            reason=result.reason,
            seconds=result.seconds,
            source=result.source,
        )
        yield pb.AttachRequest(moved=moved)
    while router.recalled:
        ask, decisions = router.recalled.popleft()
        yield pb.AttachRequest(recalled=pb.Recalled(ask=ask, decisions=to_wire(decisions)))
    while router.lost_instances:
        (name, life), condemned = router.lost_instances.popleft()
        yield pb.AttachRequest(lost=pb.LostInstance(name=name, life=life, condemned=condemned))
