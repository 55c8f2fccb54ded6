"""Instances drained, flipped, restarted and added: each is emptied by moving all that it has before it is touched.

An operation on an instance is a task of its own, which is brought to its end whoever stops looking.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import grpc

from ..handover.config import HandoverConfig
from .config import POOLS, ClusterConfig
from .operation import Operation, Phase, Progress
from .refusal import Refused, refuse
from .registry import END, RESTARTED, Record, Spec, State, least_size, new_name, spec, why_busy, why_needed
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

BEAT_S = 5.0
"""Progress is told so often at least."""
LARGEST_POOL = 256
ADDED = "added"
QUIET_BEATS = 2
"""An instance is empty when it has said so for so long: a router may have sent something just before it heard."""

Work = Callable[[Operation], Awaitable[None]]


class Lifecycle:
    """Every method yields its progress, the last of it when all is done, and raises `Refused` where it cannot be."""

    def __init__(self, supervisor: Supervisor, config: ClusterConfig, handover: HandoverConfig):
        self._supervisor = supervisor
        self._config = config
        self._handover = handover
        self._why_busy = partial(why_busy, serves=supervisor.serves)
        self._operations: dict[str, Operation] = {}

    # ---- what may be asked

    async def drain(self, name: str) -> AsyncIterator[Progress]:
        """Move everything away from an instance, and end it for good; one that is being added is taken back."""
        self._check(name, self._why_busy, why_needed)
        if self._coming(name):
            adding = self._operations[name]
            adding.what = "taken back"
            adding.task.cancel()
            await asyncio.wait({adding.task})
            yield Progress(name, Phase.ENDED)
            return
        async for progress in self._followed(self._begin(name, "drained", self._drained)):
            yield progress

    async def flip(self, name: str, pool: str) -> AsyncIterator[Progress]:
        """Give an instance the role of another pool; its weights stay loaded."""
        self._check_pool(pool)
        before = self._serving(name).spec
        if before.pool == pool:
            refuse(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is in the {pool} pool already")
        after = spec(self._config, name, pool, before.home)
        self._check(name, partial(why_needed, then=pool))
        empties = before.decodes and not after.decodes
        if empties:
            self._check(name, self._why_busy)
        async for progress in self._followed(self._flip(name, after, empties)):
            yield progress

    async def restart(self, names: Sequence[str]) -> AsyncIterator[Progress]:
        """Replace instances by their next lives, one by one; all of them where none is named.

        None is touched where one of them cannot be; each is looked at once more when its turn comes.
        """
        chosen = names or list(self._supervisor.registry.records)
        for name in chosen:
            self._check_restart(name)
        for name in chosen:
            self._check_restart(name)
            async for progress in self._followed(self._begin(name, "restarted", self._restarted)):
                yield progress

    async def scale(self, pool: str, count: int) -> AsyncIterator[Progress]:
        """Bring a pool to `count` instances, those that are to go being the ones with the least to do."""
        self._check_pool(pool)
        if count > LARGEST_POOL:
            refuse(
                grpc.StatusCode.INVALID_ARGUMENT, f"a pool has at most {LARGEST_POOL} instances, not {count}"
            )
        self._check_least(pool, count)
        more = count - len(self._pool(pool))
        for operation in [self._grow(pool) for _ in range(more)]:
            async for progress in self._followed(operation):
                yield progress
        for _ in range(-more):
            async for progress in self.drain(self._idlest(pool)):
                yield progress

    async def grow(self, pool: str) -> AsyncIterator[Progress]:
        """Add an instance to a pool, and wait for room for it until it is drained."""
        async for progress in self._followed(self._grow(pool, patient=True)):
            yield progress

    async def resume(self) -> None:
        """Go on with what an earlier controller had begun to drain or to flip."""
        await self._supervisor.taken_over.wait()
        for name, record in self._supervisor.registry.records.items():
            if record.fate == END:
                self._begin(name, "drained", self._drained)
            elif record.fate:
                self._flip(name, spec(self._config, name, record.fate, record.spec.home), empties=True)

    def busy(self, name: str) -> bool:
        """Something is done with the instance just now."""
        return name in self._operations

    def _coming(self, name: str) -> bool:
        """It is being added, and has not served yet."""
        return name in self._operations and self._operations[name].what == ADDED

    # ---- operations

    def _begin(self, name: str, what: str, work: Work) -> Operation:
        if name in self._operations:
            doing = self._operations[name].what
            refuse(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is being {doing} just now")
        logger.info("%s is being %s", name, what)
        operation = self._operations[name] = Operation(what, Progress(name, Phase.DRAINING))
        operation.task = asyncio.create_task(self._done(operation, work), name=f"{name} is {what}")
        operation.task.add_done_callback(_looked_at)
        return operation

    async def _done(self, operation: Operation, work: Work) -> None:
        began, what = time.monotonic(), operation.what
        try:
            await work(operation)
        except Refused as refused:
            logger.warning("%s was not %s: %s", operation.instance, what, refused.text)
            raise
        finally:
            del self._operations[operation.instance]
        took_s, recovered = time.monotonic() - began, operation.now.recovered
        logger.info(
            "%s was %s in %.1f s, %d sessions recovered",
            operation.instance,
            what,
            took_s,
            recovered,
        )

    async def _followed(self, operation: Operation) -> AsyncIterator[Progress]:
        said, said_at = None, 0.0
        while not operation.task.done():
            if operation.now != said or time.monotonic() - said_at > BEAT_S:
                said, said_at = operation.now, time.monotonic()
                yield said
            await asyncio.wait({operation.task}, timeout=self._handover.heartbeat_s)
        operation.task.result()
        yield operation.now

    async def _drained(self, operation: Operation) -> None:
        left = await self._emptied(operation, END)
        await self._supervisor.retire(operation.instance)
        operation.says(Phase.ENDED, recovered=left)

    def _flip(self, name: str, after: Spec, empties: bool) -> Operation:
        return self._begin(name, "flipped", partial(self._flipped, after=after, empties=empties))

    async def _flipped(self, operation: Operation, after: Spec, empties: bool) -> None:
        name, record = operation.instance, self._record(operation)
        left = await self._emptied(operation, after.pool) if empties else 0
        if left and self._record(operation) == replace(record, state=State.DRAINING, fate=after.pool):
            self._supervisor.empty(name, False)
            text = f"{left} requests could not be moved within {self._config.drain_s:g} s (cluster.drain_s)"
            refuse(grpc.StatusCode.ABORTED, f"{text}; {name} stays in the {record.spec.pool} pool")
        self._supervisor.assign(after)
        self._supervisor.empty(name, False)
        await self._plays(name, after)
        operation.says(Phase.SERVING, recovered=left)

    async def _restarted(self, operation: Operation) -> None:
        before = self._record(operation).incarnation
        left = await self._emptied(operation)
        operation.says(Phase.STARTING, recovered=left)
        self._supervisor.condemn(before, RESTARTED)
        await self._started(operation.instance, before.life)
        operation.says(Phase.SERVING, recovered=left)

    def _grow(self, pool: str, patient: bool = False) -> Operation:
        name = new_name(self._supervisor.registry, pool)
        self._supervisor.add(spec(self._config, name, pool))
        operation = self._begin(name, ADDED, partial(self._added, patient=patient))
        operation.says(Phase.STARTING)
        return operation

    async def _added(self, operation: Operation, patient: bool) -> None:
        name = operation.instance
        try:
            await self._started(name, 0, patient)
        except asyncio.CancelledError:
            await self._supervisor.retire(name)
            refuse(grpc.StatusCode.ABORTED, f"{name} was drained before it served")
        except BaseException:
            await self._supervisor.retire(name)
            raise
        operation.says(Phase.SERVING)

    # ---- their parts

    async def _emptied(self, operation: Operation, fate: str = "") -> int:
        """Have everything moved away, within `drain_s`; how many sessions were left.

        An instance that is lost meanwhile, or was before, has been emptied in its own way.
        """
        name = operation.instance
        if fate:
            await self._supervisor.decide(name, fate)
        who = self._record(operation).incarnation
        deadline, quiet, left = time.monotonic() + self._config.drain_s, 0, 0
        self._supervisor.empty(name)
        while quiet < QUIET_BEATS:
            record = self._record(operation)
            if record.incarnation != who or record.state != State.DRAINING:
                break
            load = self._supervisor.load(name)
            if load is not None:
                left = load.sessions
                quiet = quiet + 1 if load.draining and not left else 0
                operation.says(Phase.DRAINING, left)
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(self._handover.heartbeat_s)
        return left

    async def _started(self, name: str, before: int, patient: bool = False) -> None:
        """Wait for a life after `before` that serves; its failure is told, and tried again by the supervisor.

        Who is `patient` counts no time in which it waits for room.
        """

        def serves() -> bool:
            record = self._supervisor.registry[name]
            if record.life > before and record.state == State.LOST:
                refuse(grpc.StatusCode.ABORTED, f"{name} does not start: {record.reason}")
            return record.life > before and record.state == State.SERVING

        deadline = time.monotonic() + self._config.start_s
        while not serves():
            pending = self._supervisor.registry[name].state is State.PENDING
            if patient and pending:
                deadline = time.monotonic() + self._config.start_s
            if time.monotonic() > deadline:
                because = f": {self._supervisor.registry[name].reason}" if pending else ""
                limit = f"{self._config.start_s:g} s (cluster.start_s)"
                refuse(grpc.StatusCode.ABORTED, f"{name} did not start within {limit}{because}")
            await asyncio.sleep(self._handover.heartbeat_s)

    async def _plays(self, name: str, wanted: Spec) -> None:
        """Wait until the instance says itself that it has the role."""
        deadline = time.monotonic() + self._config.drain_s
        while True:
            load = self._supervisor.load(name)
            role = load and (load.prefill_tokens, load.decode_slots, load.draining)
            if role == (wanted.prefill_tokens, wanted.decode_slots, False):
                return
            if time.monotonic() > deadline:
                refuse(grpc.StatusCode.ABORTED, f"{name} does not change its role")
            await asyncio.sleep(self._handover.heartbeat_s)

    # ---- what there is

    def _record(self, operation: Operation) -> Record:
        return self._supervisor.registry[operation.instance]

    def _known(self, name: str) -> Record:
        registry = self._supervisor.registry
        if name not in registry:
            names = ", ".join(sorted(registry.records))
            refuse(grpc.StatusCode.NOT_FOUND, f"no instance {name}; there are {names}")
        return registry[name]

    def _serving(self, name: str) -> Record:
        record = self._known(name)
        if record.state != State.SERVING and name not in self._operations:
            text = f"{name} does not serve: it is {record.state.value}"
            because = f" ({record.reason})" if record.reason else ""
            refuse(grpc.StatusCode.FAILED_PRECONDITION, text + because)
        return record

    def _check(self, name: str, *reasons: Callable[..., str]) -> None:
        self._known(name)
        for reason in reasons:
            if text := reason(self._supervisor.registry, name):
                refuse(grpc.StatusCode.FAILED_PRECONDITION, text)

    def _check_pool(self, pool: str) -> None:
        if pool not in POOLS:
            refuse(grpc.StatusCode.INVALID_ARGUMENT, f"no pool {pool}; there are {', '.join(POOLS)}")

    def _check_restart(self, name: str) -> None:
        self._serving(name)
        self._check(name, self._why_busy)

    def _check_least(self, pool: str, count: int) -> None:
        least = least_size(self._supervisor.registry, pool)
        if count < least:
            text = f"the {pool} pool has to keep {least} at least, not {count}: no other does its work"
            refuse(grpc.StatusCode.FAILED_PRECONDITION, text)

    def _pool(self, pool: str) -> list[Record]:
        return [record for record in self._supervisor.registry.records.values() if record.spec.pool == pool]

    def _idlest(self, pool: str) -> str:
        def work(record: Record) -> tuple[bool, bool, int]:
            load, state = self._supervisor.load(record.spec.name), record.state
            return state != State.PENDING, self._supervisor.serves(record), load.sessions if load else 0

        def busy(name: str) -> bool:
            return name in self._operations and not self._coming(name)

        idle = [record for record in self._pool(pool) if not busy(record.spec.name)]
        if not idle:
            refuse(grpc.StatusCode.FAILED_PRECONDITION, f"every instance of the {pool} pool is busy changing")
        return min(reversed(idle), key=work).spec.name


def _looked_at(task: asyncio.Task[None]) -> None:
    """Nobody may wait for it any more; that is no defect."""
    if not task.cancelled():
        task.exception()
