"""How soon a cancelled request has left: from the client's cancel until every block is free, on every instance.

Requests are cancelled while they are queued (behind a prompt of 8k tokens), while such a prompt is prefilled, on their
first token (when the last blocks and the commit are on their way to the decode instance), and while they decode. A
queued request has no blocks: it has left when no instance has it. Instances tell their load every 10 ms here, which is
how exact the figures are. Right after each the next request is sent, and its time to the first token compared with
that of equal requests that nothing came before.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

from ..cluster import processes
from ..cluster.config import default
from ..cluster.controller import INSTANCE
from ..cluster.launcher import ROUTER, Cluster
from ..policy.state import LoadView
from .figures import Report, progress, quantile
from .gaps import inter_token_ms
from .streams import Streams, TokenStream
from .watch import Watch, holds_nothing

logger = logging.getLogger(__name__)

STATES = QUEUED, PREFILLING, TRANSFERRING, DECODING = "queued", "prefilling", "transferring", "decoding"
LONG_PROMPT = 8000
PROMPTS = {QUEUED: 512, PREFILLING: LONG_PROMPT, TRANSFERRING: 2048, DECODING: 256}
OUTPUT = 400
HEARTBEAT_S = 0.01
ALLOWED_MS = 50.0
"""Beside the step or chunk that runs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    samples: int = 50
    """Of each state."""
    seed: int = 0


@dataclass
class Found:
    """What was measured so far, in ms."""

    free_ms: dict[str, list[float]] = field(default_factory=lambda: {state: [] for state in STATES})
    next_ms: dict[str, list[float]] = field(default_factory=lambda: {state: [] for state in STATES})
    """Time to the first token of the request that came next."""
    alone_ms: list[float] = field(default_factory=list)
    """The same of a request that nothing came before."""
    chunks_ms: list[float] = field(default_factory=list)
    steps_ms: list[float] = field(default_factory=list)
    missed: int = 0
    """Requests that had left their state before they could be cancelled."""


def measure(
    plan: Plan, say: Callable[[str], None] = logger.info, instance: str = INSTANCE, router: str = ROUTER
) -> Report:
    """Start a cluster of one prefill and two decode instances of the embedded checkpoint, and measure on it.

    `TimeoutError` where something is held for ever. `instance` and `router` are as `Cluster.start` takes them.
    """
    config = default()
    config = replace(
        config,
        router=replace(config.router, port=0),
        handover=replace(config.handover, heartbeat_s=HEARTBEAT_S),
    )
    with Cluster.start(config, progress=say, instance=instance, router=router) as cluster:
        processes.freeze()  # else this process has pauses of its own
        with progress("cancels", plan.samples * len(STATES)) as advance:
            found = asyncio.run(_measure(plan, cluster, advance))
    return report(plan, found)


async def _measure(plan: Plan, cluster: Cluster, advance: Callable[[int], None]) -> Found:
    instances = cluster.instances()
    async with (
        Streams(cluster.address, cluster.model.vocabulary) as streams,
        Watch(instances, HEARTBEAT_S) as watch,
    ):
        canceller = Canceller(streams, watch, random.Random(plan.seed))
        chunks = asyncio.create_task(time_chunks(watch.loads, canceller.found.chunks_ms), name="chunks")
        try:
            for _ in range(2):  # the first is slower than those after it
                await canceller.prefill_once()
            for _ in range(plan.samples):
                for state in STATES:
                    await canceller.cancel(state)
                    advance(1)
        finally:
            chunks.cancel()
            await asyncio.gather(chunks, return_exceptions=True)
        return canceller.found


async def time_chunks(loads: Mapping[str, LoadView], chunks_ms: list[float]) -> None:
    """While prompts run: from one view that counts a further step to the next. Until cancelled."""
    since: dict[str, tuple[int, float | None]] = {}
    while True:
        await asyncio.sleep(HEARTBEAT_S / 2)
        now = time.perf_counter()
        for name, load in loads.items():
            if not (load.running and load.queued_tokens):
                since.pop(name, None)
                continue
            steps, began = since.setdefault(name, (load.steps, None))
            if load.steps > steps:
                since[name] = load.steps, now
                if began is not None:
                    chunks_ms.append((now - began) * 1e3 / (load.steps - steps))


class Canceller:
    """Brings requests into a state one at a time, cancels them, and measures what follows."""

    def __init__(self, streams: Streams, watch: Watch, draw: random.Random):
        self.found = Found()
        self._streams = streams
        self._watch = watch
        self._draw = draw
        self._prefill_s = 0.0
        """What the long prompt takes."""
        self._reach: dict[str, Callable[[TokenStream], Awaitable[None]]] = {
            PREFILLING: self._until_prefilling,
            TRANSFERRING: lambda victim: victim.reach(1),
            DECODING: self._until_decoding,
        }

    async def prefill_once(self) -> None:
        """Let a long prompt come to its end: what it takes."""
        began = time.perf_counter()
        stream = self._streams.begin(LONG_PROMPT, 2)
        await stream.reach(1)
        self._prefill_s = time.perf_counter() - began
        await self._streams.close(stream)
        await self._watch.since(holds_nothing)

    async def cancel(self, state: str) -> None:
        """One sample: an undisturbed request, the cancelled one, and the next."""
        self.found.alone_ms.append(await self._ttft_ms())
        if state == QUEUED:
            await self._cancel_queued()
            await self._watch.since(holds_nothing)
        else:
            await self._cancel_running(state)
        self.found.next_ms[state].append(await self._ttft_ms())

    async def _cancel_queued(self) -> None:
        blocker = self._streams.begin(LONG_PROMPT, 2)
        await self._watch.until(lambda: any(load.running for load in self._watch.loads.values()))
        victim = self._streams.begin(PROMPTS[QUEUED], OUTPUT)
        await self._watch.until(lambda: any(map(_queues, self._watch.loads.values())) or blocker.tokens)
        await self._leave(QUEUED, victim, lambda load: not _queues(load))
        await self._streams.close(blocker)

    async def _cancel_running(self, state: str) -> None:
        victim = self._streams.begin(PROMPTS[state], OUTPUT)
        await self._reach[state](victim)
        await self._leave(state, victim, holds_nothing)
        if state == DECODING:
            self.found.steps_ms += inter_token_ms(victim.arrivals[2:])

    async def _until_prefilling(self, victim: TokenStream) -> None:
        """Anywhere within its chunks."""
        await self._watch.until(lambda: not all(map(holds_nothing, self._watch.loads.values())))
        await asyncio.sleep(self._draw.uniform(0.0, 0.8) * self._prefill_s)

    async def _until_decoding(self, victim: TokenStream) -> None:
        await victim.reach(self._draw.randint(8, 40))

    async def _leave(self, state: str, victim: TokenStream, left: Callable[[LoadView], bool]) -> None:
        """Cancel, unless it has left the state already, and wait until it is gone."""
        expected = {QUEUED: 0, PREFILLING: 0, TRANSFERRING: 1, DECODING: victim.tokens}[state]
        caught = victim.tokens == expected and not all(map(left, self._watch.loads.values()))
        began = time.perf_counter()
        await self._streams.close(victim)
        ended = await self._watch.since(left)
        if caught:
            self.found.free_ms[state].append((ended - began) * 1e3)
        else:
            self.found.missed += 1

    async def _ttft_ms(self) -> float:
        began = time.perf_counter()
        stream = self._streams.begin(PROMPTS[DECODING], 2)
        await stream.reach(1)
        took = (stream.arrivals[0].at_s - began) * 1e3
        await self._streams.close(stream)
        await self._watch.since(holds_nothing)
        return took


def _queues(load: LoadView) -> bool:
    return load.waiting > 0


def report(plan: Plan, found: Found) -> Report:
    """99th percentiles with least and greatest, and what they may be. `ValueError` where a state was never met."""
    told: dict[str, tuple[float, str]] = {}
    spread: dict[str, tuple[float, float]] = {}
    chunk_ms, step_ms = quantile(found.chunks_ms, 0.99), quantile(found.steps_ms, 0.99)
    for state in STATES:
        values = found.free_ms[state]
        if not values:
            raise ValueError(f"no request could be cancelled while {state}: the machine is too busy")
        told[f"free_p99_ms_{state}"] = quantile(values, 0.99), "ms"
        spread[f"free_p99_ms_{state}"] = min(values), max(values)
        told[f"limit_ms_{state}"] = (step_ms if state == DECODING else chunk_ms) + ALLOWED_MS, "ms"
    ratios = [median(found.next_ms[state]) / median(found.alone_ms) for state in STATES]
    told["next_ttft_ratio"] = median(sum(found.next_ms.values(), [])) / median(found.alone_ms), "1"
    spread["next_ttft_ratio"] = min(ratios), max(ratios)
    told["samples"] = min(map(len, found.free_ms.values())), "requests"
    told["missed"] = found.missed, "requests"
    return Report.of(f"bench cancel --samples {plan.samples} --seed {plan.seed}", told, spread=spread)
