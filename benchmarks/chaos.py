"""Whether streams stay what they are, and nothing is lost or left, while a live cluster is struck by faults."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from ..cluster import processes
from ..cluster.config import Config, default
from ..cluster.launcher import Cluster
from ..cluster.preparation import environment
from ..cluster.state import TEMP_PREFIX
from ..engine.config import EMBEDDED
from . import flaky, head
from .compare import compare_shaped
from .faults import KINDS, OF_INSTANCES, draw_kinds, possible
from .figures import Report, progress
from .leaks import leaked_blocks, settled
from .plain import Asked
from .reference import Reference
from .storm import Run, Struck, storm, undisturbed
from .trials import Trial, draw_trials

logger = logging.getLogger(__name__)

TRIALS = 32
"""Different requests; each run is one of them."""
SAMPLED_SHARE = 0.8
AT_ONCE = 8
"""Of the undisturbed ones."""
RATE = 1.8
"""Requests a second while faults strike."""
LONGEST_PROMPT = 900
LONGER = 200
"""Tokens of output more than trials have elsewhere, so that several run wherever a fault strikes."""
ROUTERS = 2
"""The clients of one that is killed go on at the other."""
INSTANCE = "penstock.benchmarks.flaky:FlakyInstance"
ACTORS = ("ray::InstanceActor", "ray::RouterActor", "ray::Controller")
MUST_BE_0 = ("mismatched", "duplicated", "missing", "hung", "leaked_blocks", "leaked_processes")
MOST_TIES = 1e-4
STARTS_S = 60.0
"""For instances that were struck last to start anew."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """What to do: so many faults within so many minutes, all of it drawn from the seed."""

    faults: int
    seed: int
    minutes: float
    prefill: int = 2
    decode: int = 3
    config: Config = default()

    def __post_init__(self) -> None:
        if self.faults < 0:
            raise ValueError(f"there cannot be {self.faults} faults")
        if not self.minutes > 0:
            raise ValueError(f"the faults need some time, got {self.minutes} minutes")
        if self.prefill < 2 or self.decode < 2:
            raise ValueError(
                "one instance of a pool is struck while another serves: at least 2 of each are needed"
            )

    @property
    def command(self) -> str:
        return f"chaos --faults {self.faults} --seed {self.seed} --minutes {self.minutes:g}"

    @property
    def served(self) -> Config:
        """What the cluster runs under."""
        return replace(
            self.config,
            engine=replace(self.config.engine, model=EMBEDDED),
            router=replace(self.config.router, port=0),
            cluster=replace(self.config.cluster, prefill=self.prefill, decode=self.decode, routers=ROUTERS),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and in a sentence each what of it may not be."""

    report: Report
    failures: tuple[str, ...]


def chaos(asked: Chaos, say: Say = logger.info) -> Verdict:
    """Run it all; `say` hears what begins."""
    kinds, barred = possible()
    for kind, reason in barred.items():
        say(f"{kind} cannot be injected here: {reason}")
    if reason := head.unavailable():
        say(f"head is not killed but stopped and goes on: {reason}")
    drawn = draw_kinds(asked.faults, kinds, random.Random(asked.seed))
    with (
        _stage(asked.served.cluster.temp_dir),
        Cluster.start(asked.served, progress=say, instance=INSTANCE) as cluster,
    ):
        trials = _trials(cluster, asked.seed)
        say(f"{len(trials)} requests undisturbed")
        still = asyncio.run(undisturbed(cluster.address, trials, AT_ONCE))
        say(f"{asked.faults} faults in {asked.minutes:g} minutes, {RATE:g} requests a second")
        with progress("faults", len(drawn)) as advance:
            runs, struck, skipped = asyncio.run(
                storm(
                    *(cluster.address, cluster.controller_address, cluster.record.cluster_id),
                    *(trials, drawn, 60 * asked.minutes, RATE, asked.seed, say, lambda: advance(1)),
                )
            )
        say("waiting until all is given back")
        instances = asyncio.run(settled(cluster.controller_address, asked.served.handover, STARTS_S))
        for one in instances:
            if one.state != "serving" or leaked_blocks(one):
                say(f"{one.name} is {one.state} with {leaked_blocks(one)} blocks kept: {one.reason}")
        leaked = Counter(
            leaked_blocks=sum(map(leaked_blocks, instances)),
            leaked_processes=_surplus(cluster.record.cluster_id, len(instances)),
        )
        folder = asked.served.engine.folder
    if skipped:
        say(f"{skipped} requests were not sent, since too many were under way")
    counts: Counter[str] = Counter(
        dict.fromkeys(("streams", "ties", *MUST_BE_0, "requests", "recoveries", "resumed", "refused"), 0)
    )
    counts.update(leaked)
    counts.update(_came_of(runs))
    counts.update(_beside(folder, still, runs, say))
    figures = _figures(counts, struck, runs)
    units = {key: _unit(key) for key in figures}
    report = Report(command=asked.command, figures=figures, units=units)
    return Verdict(report, tuple(failures(figures, asked.faults)))


@contextmanager
def _stage(temp_dir: str) -> Iterator[None]:
    """What faults need about a cluster that is started within."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix=TEMP_PREFIX, dir=temp_dir))
        stack.enter_context(environment({flaky.FOLDER: folder}))
        if not head.unavailable():
            stack.enter_context(head.kept(temp_dir))
        yield


def failures(figures: Mapping[str, float], faults: int) -> Iterator[str]:
    """What the figures show to be wrong."""
    for name in MUST_BE_0:
        if figures[name]:
            yield f"{name} is {figures[name]:g} and must be 0"
    if figures["ties"] > max(1, MOST_TIES * figures["tokens"]):
        yield f"{figures['ties']:g} ties in {figures['tokens']:g} tokens are a defect"
    if figures["faults"] < faults:
        yield f"only {figures['faults']:g} of {faults} faults were injected"


# ---- the load


def _trials(cluster: Cluster, seed: int) -> list[Trial]:
    drawn = draw_trials(
        TRIALS,
        0,
        seed,
        vocabulary=cluster.model.vocabulary,
        context_tokens=cluster.model.context_tokens,
        sampled_share=SAMPLED_SHARE,
        text=True,
    )
    return [
        replace(
            trial,
            prompt=trial.prompt[:LONGEST_PROMPT],
            max_tokens=trial.max_tokens + LONGER,
            cancel_after=None,
        )
        for trial in drawn
    ]


def _surplus(cluster_id: str, instances: int) -> int:
    """Actors that live though nobody counts on them: there is one an instance and a router, and a controller."""
    actors = [pid for pid in processes.marked(cluster_id) if processes.title(pid).startswith(ACTORS)]
    return max(0, len(actors) - instances - ROUTERS - 1)


# ---- what came of it


def _came_of(runs: Sequence[Run]) -> Counter[str]:
    streams = [stream for run in runs for stream in run.streams]
    return Counter(
        requests=len(runs),
        streams=len(streams),
        tokens=sum(len(stream.tokens) for stream in streams),
        duplicated=sum(stream.duplicated for stream in streams),
        missing=sum(stream.missing for run in runs for stream in run.streams if not run.hung),
        hung=sum(run.hung for run in runs),
        recoveries=sum(stream.recoveries for stream in streams),
        resumed=sum(run.attempts > 1 + run.refused for run in runs),
        refused=sum(run.refused > 0 for run in runs),
    )


def _beside(folder: Path, still: Sequence[Run], runs: Sequence[Run], say: Say) -> Counter[str]:
    """Streams that are not what they are undisturbed: by rounding ties, or wrong from some token on."""
    counts: Counter[str] = Counter()
    calm = {(run.trial.prompt, run.trial.seed): run for run in still}
    reference: Reference | None = None
    for run in runs:
        trial = run.trial
        for trouble in {trouble for stream in run.streams for trouble in stream.troubles}:
            say(f"{trial.request_id}: {trouble}")
        before = calm[trial.prompt, trial.seed]
        for stream, plain in zip(run.streams, before.streams, strict=True):
            if stream.tokens == plain.tokens[: len(stream.tokens)]:
                continue
            reference = reference or Reference(folder)
            logits = reference.logits(trial.prompt, stream.tokens)
            asked = Asked(trial.params(stream.choice), trial.prompt)
            found = compare_shaped(stream.tokens, logits, asked)
            counts.update(ties=max(found.ties, int(not found.mismatched)), mismatched=found.mismatched)
            if found.mismatched:
                say(
                    f"{trial.request_id}, choice {stream.choice}: wrong from token {found.tokens - found.mismatched}"
                )
    return counts


def _figures(counts: Counter[str], struck: Sequence[Struck], runs: Sequence[Run]) -> dict[str, float]:
    kinds = Counter(one.fault.kind for one in struck)
    figures: dict[str, float] = {"faults": len(struck), **{f"faults_{kind}": kinds[kind] for kind in KINDS}}
    figures |= {key: counts[key] for key in sorted(counts)}
    for kind, gaps in _gaps(struck, runs).items():
        figures[f"gap_p50_ms_{kind}"] = 1000 * _percentile(gaps, 50)
        figures[f"gap_p99_ms_{kind}"] = 1000 * _percentile(gaps, 99)
    return figures


def _gaps(struck: Sequence[Struck], runs: Sequence[Run]) -> dict[str, list[float]]:
    """For each kind, how long the streams waited that a fault of it struck: those of its target, or all."""
    gaps: defaultdict[str, list[float]] = defaultdict(list)
    for one in struck:
        for run in runs:
            owner = run.owner(one.at)
            if owner is None or not _touches(one, owner):
                continue
            gaps[one.fault.kind].append(run.gap_s(one.at))
    return gaps


def _touches(one: Struck, owner: str) -> bool:
    """A stream that has no token yet is with some prefill instance."""
    if one.fault.kind not in OF_INSTANCES:
        return True
    return owner == one.fault.target or (not owner and one.fault.target.startswith("prefill"))


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _unit(key: str) -> str:
    if key.startswith("gap_"):
        return "ms"
    if key.startswith("faults"):
        return "faults"
    named = {
        "leaked_blocks": "blocks",
        "leaked_processes": "processes",
        "streams": "streams",
        "hung": "requests",
        "requests": "requests",
        "resumed": "requests",
        "refused": "requests",
        "recoveries": "recoveries",
    }
    return named.get(key, "tokens")
