"""Three times what a cluster can serve, for a minute: who is served, who is refused and how soon, and what is left.

First the capacity is measured: requests in a closed loop, as many at once as keep every instance busy. The limits that
a request counts as served by come from requests that have the cluster to themselves. A cluster that promises these
limits is then sent the same kind of requests, at random, three times as often as it can serve them, open loop, and
after the last of them probes twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median

from ..client import AsyncClient
from ..cluster import profile
from ..cluster.arrivals import LogNormal, Rate, arrivals, independent
from ..cluster.config import default
from ..cluster.controller import INSTANCE
from ..cluster.launcher import ROUTER, Cluster
from ..cluster.workload import Request, Workload
from ..policy.fairness import Slo
from .figures import RESULTS, Report, progress, quantile
from .load import Load, told
from .outcomes import Outcome, attainment, latencies, lateness

logger = logging.getLogger(__name__)

PROMPT = LogNormal(mean=256, cv=1.0, least=16, most=2048)
OUTPUT = LogNormal(mean=48, cv=1.0, least=4, most=256)
ALONE = 16
"""Requests that have the cluster to themselves, one after another."""
AT_ONCE = 32
TIMES = 3.0
TTFT_TIMES, TPOT_TIMES = 10.0, 10.0
"""A request is served well where it takes no more times as long as one that is alone."""
LEAST_TTFT_S, LEAST_TPOT_S = 1.0, 0.05
"""What no client wants to be shorter."""
PROBE_S = 15.0
PROBES_PER_S = 2.0
PROBE = "probe"
"""Its application."""
REFUSE_S = 0.1
"""A refusal is to come within it."""
MEMORY_EVERY_S = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    seconds: float = 60.0
    capacity_seconds: float = 20.0
    seed: int = 0


@dataclass
class Found:
    """What was measured."""

    slo: Slo
    capacity_per_s: float
    outcomes: list[Outcome] = field(default_factory=list)
    """Of the overload and of the probes after it."""
    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    """Pairs (seconds since the overload began, memory of all processes of the cluster without the KV caches).

    These have a fixed size, though their pages count only once they were written.
    """


def measure(plan: Plan, say: Say = logger.info, instance: str = INSTANCE, router: str = ROUTER) -> Report:
    """Start a cluster of the embedded checkpoint and overload it. `instance`, `router`: see `Cluster.start`."""
    config = default()
    config = replace(
        config,
        router=replace(config.router, port=0),
        cost=profile.load(RESULTS / "profile.yaml").cost,
    )
    with Cluster.start(config, progress=say, instance=instance, router=router) as cluster:
        found = asyncio.run(_calibrate(plan, cluster))
    say(
        f"{found.capacity_per_s:.1f} requests/s; within {found.slo.ttft_s:.2f} s, {found.slo.tpot_s:.3f} s a token"
    )
    promising = replace(config, router=replace(config.router, normal=found.slo))
    with Cluster.start(promising, progress=say, instance=instance, router=router) as cluster:
        asyncio.run(_overload(plan, cluster, found))
    if trouble := told(found.outcomes):
        say(trouble)
    return report(plan, found)


async def _calibrate(plan: Plan, cluster: Cluster) -> Found:
    async with AsyncClient(cluster.address) as client:
        slo = await _alone(client, cluster, plan.seed)
        return Found(slo, await _capacity(client, cluster, plan))


async def _overload(plan: Plan, cluster: Cluster, found: Found) -> None:
    load = overload(plan, found.capacity_per_s)
    async with AsyncClient(cluster.address) as client:
        with progress("requests", len(load)) as advance:
            played = Load(client, cluster.model.vocabulary, ended=lambda outcome: advance(1))
            watching = asyncio.create_task(_watch_memory(cluster, found))
            try:
                found.outcomes = await played.play(load, plan.seed)
            finally:
                watching.cancel()


def drawn(seed: object, times: Sequence[float]) -> Workload:
    return independent("overload", times, PROMPT, OUTPUT, random.Random(str(seed)).getrandbits(31))


def overload(plan: Plan, capacity_per_s: float) -> Workload:
    """Poisson arrivals at `TIMES` the capacity, then probes."""
    per_s = TIMES * capacity_per_s
    times = arrivals(Rate.steady(per_s), max(1, round(per_s * plan.seconds)), plan.seed)
    squeezed = [
        time_s * plan.seconds / times[-1] for time_s in times
    ]  # the draw's own length is not to matter
    return Workload.of("overload", [*drawn(plan.seed, squeezed).requests, *_probes(plan.seconds)])


def _probes(start_s: float) -> Iterator[Request]:
    for number in range(round(PROBE_S * PROBES_PER_S)):
        arrival_s = start_s + (number + 1) / PROBES_PER_S
        yield Request(arrival_s=arrival_s, prompt_tokens=256, output_tokens=16, application=PROBE)


async def _alone(client: AsyncClient, cluster: Cluster, seed: int) -> Slo:
    """What requests are to be served within, from what they take one after another."""
    loads = [drawn(f"{seed} alone {number}", [0.0]) for number in range(ALONE)]
    played = Load(client, cluster.model.vocabulary)
    outcomes = [outcome for number, load in enumerate(loads) for outcome in await played.play(load, number)]
    ttft_s, tpot_s = (median(getattr(one, name) for one in outcomes) for name in ("ttft_s", "tpot_s"))
    return Slo(ttft_s=max(LEAST_TTFT_S, TTFT_TIMES * ttft_s), tpot_s=max(LEAST_TPOT_S, TPOT_TIMES * tpot_s))


async def _capacity(client: AsyncClient, cluster: Cluster, plan: Plan) -> float:
    """Requests a second with `AT_ONCE` under way, in the later two thirds of the time."""
    began, ended_at = time.perf_counter(), []
    played = Load(client, cluster.model.vocabulary)

    async def worker(number: int) -> None:
        for turn in range(1_000_000):
            await played.play(drawn(f"{plan.seed} worker {number} {turn}", [0.0]), seed=turn)
            ended_at.append(time.perf_counter() - began)

    workers = [asyncio.create_task(worker(number)) for number in range(AT_ONCE)]
    await asyncio.sleep(plan.capacity_seconds)
    for one in workers:
        one.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    later = [at for at in ended_at if at > plan.capacity_seconds / 3]
    if not later:
        raise ValueError(f"nothing was served within {plan.capacity_seconds:g} s: the machine is too busy")
    return len(later) / (plan.capacity_seconds * 2 / 3)


async def _watch_memory(cluster: Cluster, found: Found) -> None:
    began = time.perf_counter()
    while True:
        memory = await asyncio.to_thread(cluster.memory)
        found.rss_mib.append((time.perf_counter() - began, memory.anonymous_bytes / 2**20))
        await asyncio.sleep(MEMORY_EVERY_S)


# ---- the report


def report(plan: Plan, found: Found) -> Report:
    """Accepted and refused requests of the overload, and when probes were served well again."""
    sent = [outcome for outcome in found.outcomes if outcome.request.application != PROBE]
    probes = [outcome for outcome in found.outcomes if outcome.request.application == PROBE]
    refused = [outcome for outcome in sent if outcome.refused]
    accepted = [outcome for outcome in sent if not outcome.refused]
    figures: dict[str, tuple[float, str]] = {
        "capacity_per_s": (found.capacity_per_s, "requests/s"),
        "requests": (len(sent), "requests"),
        "attainment_accepted": (attainment(accepted, found.slo), "1"),
        "refused_share": (len(refused) / len(sent), "1"),
        "refusal_p99_ms": (1e3 * quantile([one.lasted_s for one in refused], 0.99) if refused else 0.0, "ms"),
        "hinted_share": (sum(one.retry_s > 0 for one in refused) / len(refused) if refused else 0.0, "1"),
        "rss_growth_mib": (growth_mib(found.rss_mib, plan.seconds), "MiB"),
        "recovered_after_s": (recovered_after_s(probes, found.slo, plan.seconds), "s"),
        "failed": (sum(not one.done for one in accepted), "requests"),
        "slo_ttft_s": (found.slo.ttft_s, "s"),
        "slo_tpot_s": (found.slo.tpot_s, "s"),
        **latencies(accepted),
        **lateness(found.outcomes),
    }
    return Report.of(f"bench overload --seconds {plan.seconds:g} --seed {plan.seed}", figures)


def growth_mib(samples: Sequence[tuple[float, float]], seconds: float) -> float:
    """From the second sixth of the overload, when all that is kept has been made once, to its last."""

    def within(start: float, end: float) -> list[float]:
        return [mib for at_s, mib in samples if start * seconds <= at_s <= end * seconds]

    before, after = within(1 / 6, 2 / 6), within(5 / 6, 1.0)
    return mean(after) - mean(before) if before and after else 0.0


def recovered_after_s(probes: Sequence[Outcome], slo: Slo, ended_s: float) -> float:
    """When the probes began of which all were served well; `PROBE_S` where the last was not."""
    after_s = PROBE_S
    for probe in reversed(probes):
        if not probe.meets(slo):
            break
        after_s = probe.due_s - ended_s
    return after_s
