"""A cluster under load while faults strike it: an open loop of streams, each resumed as the client library does."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio

from ..client import AsyncClient, Cluster, PenstockError
from ..client.address import target
from ..client.errors import from_rpc
from ..client.events import from_response
from ..client.request import Attempts
from ..client.sync import CHANNEL
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .exercise import Stream, request_of
from .faults import Fault, aim, inject
from .trials import Trial

logger = logging.getLogger(__name__)

STREAM_S = 90.0
"""A stream that takes longer hangs."""
MOST_AT_ONCE = 64
"""Streams beyond it are not begun; how many were not is told."""
READY_S = 60.0
"""How long a fault waits for the cluster to be able to bear it."""
AGAIN_S = 0.2
"""Before a request that no router took, or that waited there in vain for its turn, is sent anew."""
PROMPT_S = 10.0
"""How long the end of a prefill instance waits for a prompt that it may have."""
LOOK_S = 0.2
"""Between two looks at a cluster that cannot bear the next fault yet, or whose controller is away."""


@dataclass
class Run:
    """One request under way: its choices' streams, and when tokens of any of them came."""

    trial: Trial
    streams: list[Stream]
    began: float
    arrivals: list[tuple[float, str]] = field(default_factory=list)
    """When, and from which instance."""
    attempts: int = 0
    refused: int = 0
    """How often all routers were too busy to take it."""
    hung: bool = False
    ended: float = 0.0

    def owner(self, at: float) -> str | None:
        """The instance that made the last token before that time; empty where none had come. None: it did not run."""
        if not self.began <= at < (self.ended or at + 1):
            return None
        before = [maker for when, maker in self.arrivals if when <= at]
        return before[-1] if before else ""

    def gap_s(self, at: float) -> float:
        """From the last token before that time (or the start) to the next after it, or to the end."""
        before = [when for when, _ in self.arrivals if when <= at]
        after = [when for when, _ in self.arrivals if when > at]
        return (after[0] if after else self.ended) - (before[-1] if before else self.began)


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was injected, and when."""

    fault: Fault
    at: float


class Client:
    """Runs trials against a router's address, as often as is asked."""

    def __init__(self, address: str):
        self._channel = grpc.aio.insecure_channel(target(address), options=CHANNEL)
        self._stub = InferenceServiceStub(self._channel)
        self.waiting: set[str] = set()
        """Requests that have no token yet."""

    async def run(self, trial: Trial) -> Run:
        """Never raises for what becomes of the request: it is told in its streams."""
        run = Run(trial, [Stream(trial, choice) for choice in range(trial.choices)], time.monotonic())
        self.waiting.add(trial.request_id)
        try:
            async with asyncio.timeout(STREAM_S):
                await self._until_taken(run)
        except TimeoutError:
            run.hung = True
            run.streams[0].troubles.append(f"it hangs: no end within {STREAM_S:g} s")
        except PenstockError as error:
            run.streams[0].troubles.append(f"the stream ended: {error}")
        finally:
            self.waiting.discard(trial.request_id)
        run.ended = time.monotonic()
        return run

    async def _until_taken(self, run: Run) -> None:
        """Send the request as often as no router takes it, under another name where one that refused it knows it."""
        name = run.trial.request_id
        while True:
            named = replace(run.trial, request_id=f"{name}-{run.refused}" if run.refused else name)
            if await self._attempt(run, Attempts(request_of(named))):
                return
            await asyncio.sleep(AGAIN_S)

    async def _attempt(self, run: Run, attempts: Attempts) -> bool:
        """All attempts, as the client library makes them; but what it takes is kept as it came.

        False where no router took the request: then it is to be sent anew.
        """
        started = False
        while True:
            run.attempts += 1
            call: Any = self._stub.Generate(attempts.request(), timeout=STREAM_S)
            try:
                async for response in call:
                    started = True
                    attempts.take(from_response(response))
                    self._take(run, response)
                return True
            except grpc.RpcError as error:
                known = from_rpc(error, "the router")
                if not started and known.code is grpc.StatusCode.UNAVAILABLE and not known.final:
                    return False
                if not run.arrivals and known.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    run.refused += 1
                    return False
                pause_s = attempts.retry_after_s(known)
            finally:
                call.cancel()
            await asyncio.sleep(pause_s)

    def _take(self, run: Run, response: Any) -> None:
        if response.HasField("delta"):
            delta = response.delta
            run.streams[delta.choice].take(delta)
            if delta.token_ids:
                run.arrivals.append((time.monotonic(), delta.instance))
                self.waiting.discard(run.trial.request_id)
        elif response.HasField("finished"):
            stream = run.streams[response.finished.choice]
            stream.recoveries = response.finished.usage.recoveries
            stream.end = response.finished.reason

    async def close(self) -> None:
        await self._channel.close(None)


async def undisturbed(address: str, trials: Sequence[Trial], at_once: int) -> list[Run]:
    """Each trial once, with no fault about."""
    client, free = Client(address), asyncio.Semaphore(at_once)

    async def one(trial: Trial) -> Run:
        async with free:
            return await client.run(trial)

    try:
        return list(await asyncio.gather(*map(one, trials)))
    finally:
        await client.close()


async def storm(
    address: str,
    controller: str,
    cluster_id: str,
    trials: Sequence[Trial],
    kinds: Sequence[str],
    seconds: float,
    rate: float,
    seed: int,
    say: Callable[[str], None],
    struck: Callable[[], None],
) -> tuple[list[Run], list[Struck], int]:
    """Trials at `rate` a second, whatever becomes of them, until all `kinds` of faults have struck.

    The faults are spread over `seconds`. Returns the runs, the faults that struck, and how many runs were not begun
    since too many were under way. Each run is a trial under a name of its own.
    """
    draw, client = random.Random(seed), Client(address)
    runs: list[asyncio.Task[Run]] = []
    skipped = 0
    strikes = Strikes(controller, cluster_id, client, say, struck)
    striking = asyncio.create_task(strikes.strike(kinds, seconds, random.Random(draw.getrandbits(32))))
    due = time.monotonic()
    try:
        while not striking.done():
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if sum(not run.done() for run in runs) >= MOST_AT_ONCE:
                skipped += 1
                continue
            trial = draw.choice(trials)
            named = replace(trial, request_id=f"chaos-{seed}-{len(runs)}")
            runs.append(asyncio.create_task(client.run(named)))
        return list(await asyncio.gather(*runs)), await striking, skipped
    finally:
        striking.cancel()
        for run in runs:
            run.cancel()
        await asyncio.gather(striking, *runs, return_exceptions=True)
        await client.close()


class Strikes:
    """Injects faults into the cluster whose controller is at an address."""

    def __init__(
        self,
        controller: str,
        cluster_id: str,
        client: Client,
        say: Callable[[str], None],
        struck: Callable[[], None],
    ):
        self._controller = controller
        self._cluster_id = cluster_id
        self._client = client
        self._say = say
        self._struck = struck

    async def strike(self, kinds: Sequence[str], seconds: float, draw: random.Random) -> list[Struck]:
        """All faults, each when its time has come and the cluster can bear it."""
        began = time.monotonic()
        struck: list[Struck] = []
        lasting: list[asyncio.Task[None]] = []
        async with AsyncClient(self._controller) as client:
            for number, kind in enumerate(kinds):
                due = began + seconds * (number + draw.uniform(0.25, 0.75)) / len(kinds)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                fault = await self._aimed(client, kind, draw)
                if fault is None:
                    self._say(f"{kind} was not injected: the cluster could not bear it for {READY_S:g} s")
                    continue
                if kind == "kill_prefill":
                    await self._prompt_waits()
                self._say(f"{time.monotonic() - began:.1f} s: {fault}")
                struck.append(Struck(fault, time.monotonic()))
                lasting.append(asyncio.create_task(inject(fault)))
                self._struck()
            await asyncio.gather(*lasting)
        return struck

    async def _aimed(self, client: AsyncClient, kind: str, draw: random.Random) -> Fault | None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            with suppress(PenstockError):
                cluster: Cluster = await client.cluster(timeout_s=2.0)
                fault = aim(kind, cluster, self._cluster_id, draw)
                if fault is not None:
                    return fault
            await asyncio.sleep(LOOK_S)
        return None

    async def _prompt_waits(self) -> None:
        """Until some prompt is being prefilled, lest the end of an idle instance count; not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PROMPT_S):
                while not self._client.waiting:  # noqa: ASYNC110 - the set is changed by many
                    await asyncio.sleep(0.002)
