"""Downtime of a request that moves between two busy instances: live, with a blocking copy, and recomputed.

A request of context N moves back and forth between two decode instances, each of which decodes eight neighbours beside
it. A client of all streams stamps every token; downtime is what `gaps` says of the mover's stream. Each live round has
a second window in which nothing moves, under the same load, and the ratio of the neighbours' step times is their
slowdown. Neighbours start anew each round, so that their contexts stay about 512.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from ..cluster.config import default
from ..cluster.launcher import Cluster
from .figures import Report, progress
from .gaps import Arrival, Downtime, downtimes
from .streams import Streams, TokenStream

logger = logging.getLogger(__name__)

CONTEXTS = (128, 512, 2048, 8192)
LIVE, BLOCKING, RECOMPUTE = "live", "blocking", "recompute"
NEIGHBOURS = 8
"""On each decode instance."""
NEIGHBOUR_CONTEXT = (256, 768)
"""Of a neighbour at the start and, about, at the end of a round."""
SETTLE_TOKENS = 8
"""That the mover makes at the destination before it moves on, and that its latency there is taken from at least."""
STILL_S = 1.5
"""Length of a window in which nothing moves."""
ROUND_MOVES = 12
"""Most moves in a round, so that windows without moves come often."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure: samples for each context."""

    contexts: Sequence[int] = CONTEXTS
    samples: int = 100
    """Of live and of blocking moves."""
    recomputed: int = 10


@dataclass
class Samples:
    """What was found so far."""

    downtimes: dict[tuple[str, int], list[Downtime]] = field(default_factory=dict)
    """By mode and context."""
    slowdowns: list[float] = field(default_factory=list)
    """Of each live round: the neighbours' step time with moves, over that without."""
    still_ms: list[float] = field(default_factory=list)
    """The neighbours' step time without moves, in each live round."""
    failed: int = 0
    """Moves that were not done."""


def measure(plan: Plan, say: Callable[[str], None] = logger.info) -> Report:
    """Start a cluster of the embedded checkpoint with one prefill and two decode instances, and measure on it."""
    config = default()
    config = replace(config, router=replace(config.router, port=0))
    total = len(plan.contexts) * (2 * plan.samples + plan.recomputed)
    with Cluster.start(config, progress=say) as cluster:
        decoders = [instance for instance in cluster.instances() if instance.pool == "decode"]
        pinned = pin([instance.pid for instance in decoders])
        names = (decoders[0].name, decoders[1].name)
        with progress("moves", total) as advance:
            found = asyncio.run(_measure(plan, cluster.address, cluster.model.vocabulary, names, advance))
    return report(plan, found, pinned)


def pin(pids: Sequence[int]) -> int:
    """Give each process a core of its own, as far as there are some; how many got one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(pids):
        return 0
    for pid, core in zip(pids, cores, strict=False):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})
    return len(pids)


async def _measure(
    plan: Plan, address: str, vocabulary: int, decoders: tuple[str, str], advance: Callable[[int], None]
) -> Samples:
    found = Samples()
    async with Streams(address, vocabulary) as streams:
        for context in plan.contexts:
            table = Table(streams, decoders, context)
            while wanted := _next(plan, found, context):
                mode, left = wanted
                before = len(found.downtimes.get((mode, context), ()))
                await table.round(mode, min(left, ROUND_MOVES), found)
                advance(len(found.downtimes[mode, context]) - before)
            await table.clear()
    return found


def _next(plan: Plan, found: Samples, context: int) -> tuple[str, int] | None:
    """The mode that has the smallest part of its samples, and how many it lacks; None when all are there."""
    goals = {LIVE: plan.samples, BLOCKING: plan.samples, RECOMPUTE: plan.recomputed}
    counts = {mode: len(found.downtimes.get((mode, context), ())) for mode in goals}
    mode = min(goals, key=lambda mode: counts[mode] / goals[mode])
    left = goals[mode] - counts[mode]
    return (mode, left) if left > 0 else None


class Table:
    """A mover of about one context, and the neighbours around it."""

    def __init__(self, streams: Streams, decoders: tuple[str, str], context: int):
        self._streams = streams
        self._decoders = decoders
        self._context = context
        self._grown = context + max(96, context // 8)
        """The context from which on a mover is replaced by a new one."""
        self._mover: TokenStream | None = None
        self._neighbours: list[TokenStream] = []
        self._rounds = 0

    async def round(self, mode: str, moves: int, found: Samples) -> None:
        """Up to `moves` of one mode, and for live ones a window without any, before or after them by turns."""
        mover = await self._ready()
        self._rounds += 1
        if mode != LIVE:
            await self._moves(mover, mode, moves, found)
            return
        if self._rounds % 2:
            still = await self._still()
            moving = await self._moves(mover, mode, moves, found)
        else:
            moving = await self._moves(mover, mode, moves, found)
            still = await self._still()
        found.slowdowns.append(moving / still)
        found.still_ms.append(still)

    async def clear(self) -> None:
        streams = [*self._neighbours, *([self._mover] if self._mover else [])]
        await asyncio.gather(*map(self._streams.close, streams))
        self._neighbours, self._mover = [], None

    # ---- before a round

    async def _ready(self) -> TokenStream:
        """The mover near its context, and eight young neighbours on each side."""
        await asyncio.gather(*map(self._streams.close, self._neighbours))
        if self._mover is None or self._mover.context > self._grown - 4 * SETTLE_TOKENS:
            if self._mover is not None:
                await self._streams.close(self._mover)
            self._mover = self._streams.begin(self._context, self._context + 4096)
            await self._mover.reach(2)
        prompt, _ = NEIGHBOUR_CONTEXT
        self._neighbours = [
            self._streams.begin(prompt, 4 * prompt) for _ in range(NEIGHBOURS * len(self._decoders))
        ]
        await asyncio.gather(*(neighbour.reach(2) for neighbour in self._neighbours))
        await self._balance()
        await asyncio.gather(*(neighbour.reach(neighbour.tokens + 4) for neighbour in self._neighbours))
        return self._mover

    async def _balance(self) -> None:
        one, other = self._decoders
        here = [neighbour for neighbour in self._neighbours if neighbour.instance == one]
        there = [neighbour for neighbour in self._neighbours if neighbour.instance == other]
        surplus = (here if len(here) > len(there) else there)[NEIGHBOURS:]
        target = other if len(here) > len(there) else one
        reasons = await asyncio.gather(*(self._streams.move(neighbour, target) for neighbour in surplus))
        assert not any(reasons), f"neighbours could not be placed: {reasons}"

    # ---- windows

    async def _moves(self, mover: TokenStream, mode: str, moves: int, found: Samples) -> float:
        """Move back and forth; the neighbours' step time in ms meanwhile."""
        await mover.reach(mover.tokens + SETTLE_TOKENS)
        window = _Window([mover, *self._neighbours])
        for _ in range(moves):
            reason = await self._move(mover, mode)
            if reason:
                logger.info("%s was not moved: %s", mover.name, reason)
                found.failed += 1
            if mover.context > self._grown or self._old():
                break
        mine, *others = window.close()
        found.downtimes.setdefault((mode, self._context), []).extend(downtimes(mine, SETTLE_TOKENS))
        return _step_ms(others)

    async def _move(self, mover: TokenStream, mode: str) -> str:
        """Move to the other side and make some tokens there; empty, or why it was not moved."""
        one, other = self._decoders
        destination = other if mover.instance == one else one
        moving = asyncio.create_task(self._streams.move(mover, destination, mode))
        while mover.instance != destination and not (moving.done() and moving.result()):
            await mover.reach(mover.tokens + 1)
        await mover.reach(mover.tokens + SETTLE_TOKENS)
        return await moving

    async def _still(self) -> float:
        window = _Window(self._neighbours)
        await asyncio.sleep(STILL_S)
        return _step_ms(window.close())

    def _old(self) -> bool:
        return any(neighbour.context > NEIGHBOUR_CONTEXT[1] for neighbour in self._neighbours)


class _Window:
    """What streams bring between its making and `close`."""

    def __init__(self, streams: Sequence[TokenStream]):
        self._streams = streams
        self._starts = [len(stream.arrivals) - 1 for stream in streams]

    def close(self) -> list[list[Arrival]]:
        """The arrivals of each stream, from the last before the window on."""
        return [stream.arrivals[start:] for stream, start in zip(self._streams, self._starts, strict=True)]


def _step_ms(streams: Iterable[Sequence[Arrival]]) -> float:
    """Mean time between the tokens of all streams."""
    spans = [(arrivals[-1].at_s - arrivals[0].at_s, arrivals) for arrivals in streams]
    tokens = sum(arrival.tokens for _, arrivals in spans for arrival in arrivals[1:])
    return sum(span_s for span_s, _ in spans) * 1e3 / tokens


# ---- the report


def report(plan: Plan, found: Samples, pinned: int) -> Report:
    """Medians and 99th percentiles, with least and greatest."""
    figures: dict[str, float] = {}
    units: dict[str, str] = {}
    spread: dict[str, tuple[float, float]] = {}

    def tell(key: str, unit: str, values: Sequence[float], share: float = 0.5) -> None:
        figures[key], units[key] = quantile(values, share), unit
        spread[key] = min(values), max(values)

    for context in plan.contexts:
        live = found.downtimes[LIVE, context]
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            tell(f"live_{name}_ms_{context}", "ms", [sample.ms for sample in live], share)
            tell(f"live_{name}_steps_{context}", "steps", [sample.steps for sample in live], share)
        tell(f"live_itl_ms_{context}", "ms", [sample.itl_ms for sample in live])
        for mode in (BLOCKING, RECOMPUTE):
            samples = found.downtimes[mode, context]
            tell(f"{mode}_p50_ms_{context}", "ms", [sample.ms for sample in samples])
        for mode in (LIVE, BLOCKING, RECOMPUTE):
            figures[f"{mode}_samples_{context}"] = len(found.downtimes[mode, context])
            units[f"{mode}_samples_{context}"] = "moves"
    tell("neighbour_slowdown", "1", found.slowdowns)
    tell("neighbour_step_ms", "ms", found.still_ms)
    figures |= {"moves_failed": found.failed, "pinned_instances": pinned}
    units |= {"moves_failed": "moves", "pinned_instances": "instances"}
    return Report(command="bench migration", figures=figures, units=units, spread=spread)


def quantile(values: Sequence[float], share: float) -> float:
    """The median for a half; else the smallest value that at least that share of them does not exceed."""
    if share == 0.5:
        return median(values)
    return sorted(values)[math.ceil(share * len(values)) - 1]
