"""The cluster as an operator sees it: instances with their loads, routers, and the sessions that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..handover.recall import to_wire
from ..policy.journal import Decision
from ..policy.state import LoadView
from ..proto import control_pb2 as pb
from ..proto import router_pb2
from .registry import Record, State
from .routers import AttachedRouter, Routers
from .supervisor import Supervisor

STATES = {
    State.PENDING: pb.INSTANCE_STATE_PENDING,
    State.STARTING: pb.INSTANCE_STATE_STARTING,
    State.SERVING: pb.INSTANCE_STATE_SERVING,
    State.DRAINING: pb.INSTANCE_STATE_DRAINING,
    State.LOST: pb.INSTANCE_STATE_LOST,
}


class Overview:
    """Of the supervisor's registry and the routers' lists.

    `changes` are the latest of the pools by themselves, and `rss_bytes` tells the memory of an instance.
    """

    def __init__(
        self,
        cluster: str,
        model: str,
        supervisor: Supervisor,
        routers: Routers,
        changes: Iterable[Decision],
        rss_bytes: Callable[[Record], int],
    ):
        self._cluster = cluster
        self._model = model
        self._supervisor = supervisor
        self._routers = routers
        self._changes = changes
        self._rss_bytes = rss_bytes

    def now(self, sessions: bool) -> pb.GetClusterResponse:
        records = self._supervisor.registry.records.values()
        attached = self._routers.attached
        return pb.GetClusterResponse(
            cluster=self._cluster,
            model=self._model,
            instances=[self._instance(record) for record in records],
            routers=[_router(router) for router in attached],
            sessions=[
                _session(router, held) for router in attached for held in router.sessions.values() if sessions
            ],
            changes=to_wire(self._changes),
        )

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
            reason=record.reason,
            work=_work(load),
        )
        refusal = self._supervisor.refusal(record.incarnation)
        if refusal and record.state is State.SERVING:
            instance.state, instance.reason = pb.INSTANCE_STATE_REFUSED, refusal
        if record.running is not None:
            instance.address, instance.pid = record.running.address, record.running.pid
            instance.rss_bytes = self._rss_bytes(record)
        return instance


def steady(told: pb.GetClusterResponse) -> pb.GetClusterResponse:
    """Without what changes all the time: how old heartbeats are, and memory."""
    rest = pb.GetClusterResponse()
    rest.CopyFrom(told)
    for instance in rest.instances:
        instance.ClearField("heartbeat_age_s")
        instance.ClearField("rss_bytes")
    return rest


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
