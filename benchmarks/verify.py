"""Whether a live cluster gives the tokens of `transformers`, each once, while its requests move, and loses no block.

For each trip a cluster is started, its share of the trials run against it, its blocks counted, and the cluster
stopped. The tokens are compared afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..client.cluster import Instance
from ..cluster.config import Config
from ..cluster.launcher import Cluster
from .exercise import Stream, exercise
from .figures import Report, progress
from .findings import UNITS, Say, arrivals, beside_reference, failures
from .leaks import leaked_blocks, settled
from .tenants import crossed_tokens
from .trials import draw_trials
from .trips import Trip, Verification, draw_trips, folders

logger = logging.getLogger(__name__)

AT_ONCE = 12
"""Requests that run at a time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and in a sentence each what of it may not be."""

    report: Report
    failures: tuple[str, ...]


def verify(asked: Verification, say: Say = logger.info) -> Verdict:
    """Run it all; `say` hears what begins. `ValueError` for a checkpoint that cannot be served."""
    counts: Counter[str] = Counter(dict.fromkeys(UNITS, 0))
    streams: dict[Path, list[Stream]] = {}
    with folders(asked) as shares:
        for trip in draw_trips(asked, shares):
            say(str(trip))
            ran, told = _travel(asked, trip, say)
            for trouble, times in Counter(trouble for stream in ran for trouble in stream.troubles).items():
                say(f"{times} x {trouble}")
            streams.setdefault(trip.folder, []).extend(ran)
            counts.update(arrivals(ran, trip.tiny))
            counts.update(told)
        say("comparing with transformers")
        changed = [
            change for folder, ran in streams.items() for change in beside_reference(folder, ran, counts, say)
        ]
    share = sum(changed) / len(changed) if changed else 0.0
    figures = {**counts, "damaged": len(changed), "sensitivity": share}
    return Verdict(
        Report(command=asked.command, figures=figures, units=UNITS),
        tuple(failures(figures, ours=asked.model is None)),
    )


def _travel(asked: Verification, trip: Trip, say: Say) -> tuple[list[Stream], Counter[str]]:
    """Start a cluster, run the trials, and stop it; what the instances told once all was given back."""
    config = trip.config(asked.config)
    with Cluster.start(config, progress=say, instance=asked.instance, router=asked.router) as cluster:
        address, model = cluster.address, cluster.model
        trials = draw_trials(
            trip.requests,
            asked.moves,
            trip.seed,
            vocabulary=model.vocabulary,
            context_tokens=model.context_tokens,
            sampled_share=trip.sampled_share,
            text=model.tokenizer is not None,
        )
        decoders = [instance.name for instance in cluster.instances() if instance.role.decode_slots]
        crossed = asyncio.run(crossed_tokens(address, model.vocabulary, trip.seed, _spoken_s(config)))
        with progress("requests", len(trials)) as advance:
            ran = asyncio.run(exercise(address, trials, decoders, AT_ONCE, lambda: advance(1)))
        return ran, _told(trip, asyncio.run(settled(address, config.handover))) + Counter(
            crossed_tokens=crossed
        )


def _spoken_s(config: Config) -> float:
    """Each pool has spoken since, to those who listen."""
    return 3 * config.handover.heartbeat_s


def _told(trip: Trip, instances: Sequence[Instance]) -> Counter[str]:
    """In a tiny cache a sequence finds what it left itself, so hits are counted where memory is ample."""
    works = [instance.work for instance in instances]
    return Counter(
        leaked_blocks=sum(map(leaked_blocks, instances)),
        restarts=sum(instance.restarts for instance in instances),
        astray_blocks=_astray(trip, instances),
        hit_tokens=0 if trip.tiny else sum(work.hit_tokens for work in works),
        preemptions=sum(work.preemptions for work in works),
        swaps=sum(work.swapped_blocks for work in works),
    )


def _astray(trip: Trip, instances: Sequence[Instance]) -> int:
    """Blocks that travelled otherwise than the transport that was asked for."""
    written = sum(instance.work.written_blocks for instance in instances)
    sent = sum(instance.work.sent_blocks for instance in instances)
    return {"local": sent, "gloo": written}.get(trip.transport, 0)
