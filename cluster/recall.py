"""Asks routers and instances what they remember of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio

from ..handover.channel import CHANNEL
from ..handover.recall import from_wire
from ..policy.journal import Decision
from ..proto import worker_pb2
from ..proto.worker_pb2_grpc import WorkerServiceStub
from .registry import Record
from .routers import Routers


@dataclass(frozen=True, slots=True)
class Told:
    decisions: tuple[Decision, ...]
    silent: tuple[str, ...]
    """Who did not answer."""


async def recall(request_id: str, routers: Routers, records: Sequence[Record], timeout_s: float) -> Told:
    """Everything that is remembered of a request; whoever does not answer in time is named."""
    attached = routers.attached
    asked = [(router.hello.name, routers.recall(router, request_id, timeout_s)) for router in attached]
    asked += [(record.spec.name, _of_instance(record, request_id, timeout_s)) for record in records]
    answers = await asyncio.gather(*(answer for _, answer in asked), return_exceptions=True)
    decisions: list[Decision] = []
    silent: list[str] = []
    for (name, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, (TimeoutError, grpc.RpcError)):
            silent.append(name)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            decisions += answer
    return Told(tuple(decisions), tuple(silent))


async def _of_instance(record: Record, request_id: str, timeout_s: float) -> list[Decision]:
    assert record.running is not None
    async with grpc.aio.insecure_channel(record.running.address, options=CHANNEL) as channel:
        request = worker_pb2.RecallRequest(request_id=request_id)
        return from_wire((await WorkerServiceStub(channel).Recall(request, timeout=timeout_s)).decisions)
