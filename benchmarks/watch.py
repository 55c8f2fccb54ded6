"""What the instances of a running cluster say of themselves, heard as routers hear it: on a Link to each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc.aio

from ..client import Instance
from ..handover.channel import CHANNEL
from ..handover.frames import Beat, Hello, Step
from ..handover.values import Incarnation
from ..handover.wire import from_link_response, to_link_request
from ..policy.state import LoadView
from ..proto import worker_pb2 as pb
from ..proto.worker_pb2_grpc import WorkerServiceStub

NAME = "bench"
POLL_S = 0.002
QUIET_S = 0.1
"""What holds for so long is no view that was late."""


class Watch:
    """`async with Watch(...) as watch`: the latest load view of each instance, as old as a heartbeat at most."""

    def __init__(self, instances: Sequence[Instance], heartbeat_s: float):
        self.loads: dict[str, LoadView] = {}
        self._instances = instances
        self._heartbeat_s = heartbeat_s
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Watch:
        self._tasks = [asyncio.create_task(self._listen(instance)) for instance in self._instances]
        await self.until(lambda: len(self.loads) == len(self._instances))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, reached: Callable[[], object], limit_s: float = 30.0) -> None:
        """Wait for something that the views show. An instance that is heard no more ends this with its error."""
        async with asyncio.timeout(limit_s):
            while not reached():
                self._check()
                await asyncio.sleep(POLL_S)

    async def since(self, holds: Callable[[LoadView], bool], limit_s: float = 30.0) -> float:
        """Since when this has held of every instance, on `time.perf_counter`; once it has for `QUIET_S`.

        `TimeoutError` names those of which it does not hold in the end.
        """
        due, began = time.perf_counter() + limit_s, None
        while began is None or time.perf_counter() - began < QUIET_S:
            self._check()
            others = [name for name, load in self.loads.items() if not holds(load)]
            if others and time.perf_counter() > due:
                raise TimeoutError(f"{', '.join(sorted(others))} still not as expected after {limit_s:g} s")
            if others:
                began = None
            elif began is None:
                began = time.perf_counter()
            await asyncio.sleep(POLL_S)
        return began

    def _check(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
                raise ConnectionError("an instance ended its stream")

    async def _listen(self, instance: Instance) -> None:
        who = Incarnation(instance.name, instance.life)
        async with grpc.aio.insecure_channel(instance.address, options=CHANNEL) as channel:
            async for response in WorkerServiceStub(channel).Link(self._beats(who)):
                match from_link_response(response):
                    case Step(load=LoadView() as load):
                        self.loads[instance.name] = load

    async def _beats(self, who: Incarnation) -> AsyncIterator[pb.LinkRequest]:
        yield to_link_request(Hello(NAME, who))
        while True:
            await asyncio.sleep(self._heartbeat_s)
            yield to_link_request(Beat())


def holds_nothing(load: LoadView) -> bool:
    """No sequence is here, and every block is free or cached."""
    return not load.waiting + load.running and not (
        load.held_blocks + load.leased_blocks + load.quarantined_blocks
    )
