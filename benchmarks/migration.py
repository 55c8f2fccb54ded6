"""Downtime of a request that moves between two busy instances: live, with a blocking copy, and recomputed.

A request of context N moves back and forth between two decode instances, each of which decodes eight neighbours beside
it. A client of all streams stamps every token; downtime is what `gaps` says of the mover's stream. What neighbours feel
is the ratio of their step times in windows with and without live moves, taken by turns under the same load, at the
contexts where a mover lives long enough for that: those with most to copy.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..cluster.config import default
from ..cluster.launcher import Cluster
from .figures import Report, progress, quantile
from .gaps import Downtime
from .seesaw import Seesaw
from .streams import Streams

logger = logging.getLogger(__name__)

CONTEXTS = (128, 512, 2048, 8192)
LIVE, BLOCKING, RECOMPUTE = "live", "blocking", "recompute"
ROUND_MOVES = 10
"""Most moves before modes, or windows with and without moves, take turns."""


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
    """Of each pair of windows: the neighbours' step time with moves, over that without."""
    still_ms: list[float] = field(default_factory=list)
    """The neighbours' step time without moves."""
    failed: int = 0
    """Moves that were not done."""

    def take(self, mode: str, context: int, downtimes: list[Downtime]) -> int:
        """Add these, and tell how many they are."""
        self.downtimes.setdefault((mode, context), []).extend(downtimes)
        return len(downtimes)


def measure(plan: Plan, say: Callable[[str], None] = logger.info) -> Report:
    """Start a cluster of the embedded checkpoint with one prefill and two decode instances, and measure on it."""
    config = default()
    engine = replace(
        config.engine, prefix_cache=False
    )  # else a way back would find all but the newest blocks there
    config = replace(config, router=replace(config.router, port=0), engine=engine)
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
    for context in plan.contexts:
        async with Streams(address, vocabulary) as streams:
            seesaw = Seesaw(streams, decoders, context)
            while wanted := _next(plan, found, context):
                mode, left = wanted
                advance(found.take(mode, context, await _round(seesaw, mode, min(left, ROUND_MOVES), found)))
            found.failed += seesaw.failed
    return found


async def _round(seesaw: Seesaw, mode: str, moves: int, found: Samples) -> list[Downtime]:
    if mode != LIVE or not seesaw.steady:
        return await seesaw.moves(mode, moves)
    downtimes, moving_ms, still_ms = await seesaw.compare(mode, moves)
    found.slowdowns.append(moving_ms / still_ms)
    found.still_ms.append(still_ms)
    return downtimes


def _next(plan: Plan, found: Samples, context: int) -> tuple[str, int] | None:
    """The mode that has the smallest part of its samples, and how many it lacks; None when all are there."""
    goals = {LIVE: plan.samples, BLOCKING: plan.samples, RECOMPUTE: plan.recomputed}
    counts = {mode: len(found.downtimes.get((mode, context), ())) for mode in goals}
    mode = min(goals, key=lambda mode: counts[mode] / goals[mode])
    left = goals[mode] - counts[mode]
    return (mode, left) if left > 0 else None


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
    if found.slowdowns:
        tell("neighbour_slowdown", "1", found.slowdowns)
        tell("neighbour_step_ms", "ms", found.still_ms)
    figures |= {"moves_failed": found.failed, "pinned_instances": pinned}
    units |= {"moves_failed": "moves", "pinned_instances": "instances"}
    return Report(command="bench migration", figures=figures, units=units, spread=spread)
