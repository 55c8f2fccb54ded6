"""Rules of dispatch, without and with live migration, on four mixed instances under bursts of heavy-tailed requests.

Llumnix' experiment (Sun et al., OSDI 2024) in real time on this machine: requests of random lengths, most short and
some long, arrive in bursts (Gamma, a coefficient of variation of 4) at instances whose memory holds a few of them,
under the aggressive rule of admission. Four instances share few cores, so their steps are paced to those of `PROFILE`,
a large model on GPUs. The same load is then played to one prefill and three decode instances with the default
admission; and a heavier one, of which one request in ten is of the high class, to four mixed ones that migrate.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import NamedTuple

from ..client import AsyncClient, Instance
from ..cluster import profile, workload
from ..cluster.arrivals import Pareto, Rate, arrivals, independent
from ..cluster.config import Config, default
from ..cluster.launcher import Cluster
from ..cluster.workload import Workload
from ..policy.cost import StepShape
from .figures import Report, progress, quantile
from .gaps import downtimes
from .load import Load, told
from .outcomes import Outcome, lateness
from .paced import WHERE

logger = logging.getLogger(__name__)

POLICIES = ROUND_ROBIN, LEAST_LOADED, FREENESS, MIGRATION = (
    "round_robin",
    "least_loaded",
    "freeness",
    "migration",
)
"""The last is the one before it, with migration."""
PD = "pd"
"""One prefill and three decode instances."""
CLASSES = "classes"
"""As the last policy, under more load: where nothing has to wait, no class is faster than another."""
BUSIER = 1.6
"""Times the rate."""
PROFILE = "llama-2-70b-h100-tp2"
"""Steps take as long as its laws say: about 30 ms where they only decode."""
INSTANCES = 4
BLOCKS = 256
"""Of 16 tokens, in each instance."""
CV = 4.0
PROMPT = Pareto(alpha=0.6, least=16, most=3000)
OUTPUT = Pareto(alpha=0.6, least=24, most=1000)
"""Half of the requests take 8 blocks or fewer; one in 20 takes a third of an instance's memory or more."""
HIGH_SHARE = 0.1
SAMPLE_S = 0.2
FULL = 0.9
"""Where so much of all memory together is taken, no move finds room."""
LIMIT_S = 180.0
"""Of one request."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    rate_per_s: float = 6.0
    seconds: float = 75.0
    seed: int = 1
    """Of the default one half of all memory is in use on the mean, and nearly all of it after some bursts."""
    runs: Sequence[str] = (*POLICIES, PD, CLASSES)


class Sample(NamedTuple):
    """What all instances said at a time."""

    held: float
    """Share of all memory that anybody has."""
    preemptions: int


@dataclass
class Found:
    """What came of one run."""

    outcomes: list[Outcome] = field(default_factory=list)
    preemptions: int = 0
    samples: list[Sample] = field(default_factory=list)

    def of(self, priority: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.request.priority == priority and one.done]


def measure(plan: Plan, say: Say = logger.info) -> Report:
    """Start a cluster for each run in turn and play the same load to it."""
    load, found = requests(plan), dict[str, Found]()
    with progress("requests", len(load) * len(plan.runs)) as advance:
        for run in plan.runs:
            played = workload.scale_rate(load, BUSIER) if run == CLASSES else load
            say(f"{run}: {len(played)} requests, {played.rate_per_s:.1f} a second")
            with Cluster.start(configured(run), progress=lambda text: None, instance=WHERE) as cluster:
                found[run] = asyncio.run(_play(plan, played, cluster, advance))
            if trouble := told(found[run].outcomes):
                say(trouble)
    return report(plan, found)


def requests(plan: Plan) -> Workload:
    """The load, the same for every run: bursts of heavy-tailed requests, some of the high class."""
    count = max(1, round(plan.rate_per_s * plan.seconds))
    times = arrivals(Rate.steady(plan.rate_per_s), count, plan.seed, cv=CV)
    squeezed = [
        time_s * plan.seconds / times[-1] for time_s in times
    ]  # the draw's own length is not to matter
    load = independent("bursts", squeezed, PROMPT, OUTPUT, plan.seed)
    draw = random.Random(f"{plan.seed} classes")
    classes = ["high" if draw.random() < HIGH_SHARE else "normal" for _ in load.requests]
    chosen = [replace(one, priority=priority) for one, priority in zip(load.requests, classes, strict=True)]
    return replace(load, requests=tuple(chosen))


def configured(run: str) -> Config:
    """What the cluster of a run is under."""
    base = default()
    pools = (
        {"prefill": 1, "decode": INSTANCES - 1}
        if run == PD
        else {"prefill": 0, "decode": 0, "mixed": INSTANCES}
    )
    admission = base.engine.admission if run == PD else "aggressive"
    router = replace(base.router, port=0)
    if run != PD:  # requests go to an instance when they come, as the rules that are compared have it
        router = replace(router, dispatch=FREENESS if run in (MIGRATION, CLASSES) else run, ahead_s=0.0)
    return replace(
        base,
        engine=replace(base.engine, kv_blocks=BLOCKS, admission=admission, prefix_cache=False),
        router=router,
        cluster=replace(base.cluster, migrate=run in (MIGRATION, PD, CLASSES), **pools),
        cost=profile.load(PROFILE).cost,
    )


async def _play(plan: Plan, load: Workload, cluster: Cluster, advance: Callable[[int], None]) -> Found:
    async with AsyncClient(cluster.address) as client:
        played = Load(client, cluster.model.vocabulary, LIMIT_S, ended=lambda outcome: advance(1))
        playing = asyncio.create_task(played.play(load, plan.seed))
        samples: list[Sample] = []
        while not playing.done():
            samples.append(sample((await client.cluster()).instances))
            await asyncio.wait([playing], timeout=SAMPLE_S)
    return Found(await playing, sample(cluster.instances()).preemptions, samples)


def sample(instances: Sequence[Instance]) -> Sample:
    total = sum(one.blocks.total for one in instances)
    free = sum(one.blocks.free + one.blocks.cached for one in instances)
    return Sample(1 - free / max(1, total), sum(one.work.preemptions for one in instances))


# ---- the report


def report(plan: Plan, found: dict[str, Found]) -> Report:
    """99th percentiles of each run, and how much faster the high class was served by the last policy."""
    figures: dict[str, tuple[float, str]] = {}
    for run, one in found.items():
        ttfts = [outcome.ttft_s for outcome in one.outcomes if outcome.arrivals]
        itls = [itl_s for outcome in one.outcomes for itl_s in outcome.itls_s]
        if not itls:
            raise ValueError(f"{run} served no request: the machine is too busy, or the load too high")
        figures[f"ttft_p99_s_{run}"] = quantile(ttfts, 0.99), "s"
        figures[f"ttft_mean_s_{run}"] = mean(ttfts), "s"
        figures[f"itl_p99_s_{run}"] = quantile(itls, 0.99), "s"
        figures[f"preemptions_{run}"] = one.preemptions, "preemptions"
        figures[f"preemptions_full_{run}"] = preempted_when_full(one.samples), "preemptions"
        figures[f"memory_mean_{run}"] = mean(one.held for one in one.samples) if one.samples else 0.0, "1"
        figures[f"failed_{run}"] = sum(not outcome.done for outcome in one.outcomes), "requests"
    if PD in found:
        waits = handover_waits_s(found[PD].outcomes)
        figures["handover_wait_p99_s_pd"] = quantile(waits, 0.99) if waits else 0.0, "s"
    if CLASSES in found:
        figures["high_priority_speedup"] = speedup(found[CLASSES]), "1"
    late = [outcome for one in found.values() for outcome in one.outcomes]
    figures |= {
        "requests": (len(late) / len(found), "requests"),
        "paced_step_ms": (1e3 * profile.load(PROFILE).cost.step.predict(StepShape(decodes=1)), "ms"),
        **lateness(late),
    }
    words = f"bench scheduling --rate {plan.rate_per_s:g} --seconds {plan.seconds:g} --seed {plan.seed}"
    return Report.of(words, figures)


def preempted_when_full(samples: Sequence[Sample]) -> int:
    """How many of the preemptions fell between two samples of which one at least found nearly all memory taken."""
    pairs = zip(samples, samples[1:], strict=False)
    return sum(
        after.preemptions - before.preemptions
        for before, after in pairs
        if max(before.held, after.held) > FULL
    )


def handover_waits_s(outcomes: Iterable[Outcome]) -> list[float]:
    """From the token that the prefill instance made to the first of a decode instance."""
    first = [downtimes(outcome.arrivals)[:1] for outcome in outcomes]
    return [change.gap_ms / 1e3 for changes in first for change in changes]


def speedup(found: Found) -> float:
    """Mean time a token of the normal class over that of the high class, waiting included."""
    normal, high = (
        [outcome.lasted_s / outcome.tokens for outcome in found.of(priority)]
        for priority in ("normal", "high")
    )
    return mean(normal) / mean(high) if normal and high else 0.0
