"""Gaps in a client's stream: inter-token latency, and the downtime of a request that was moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message of a stream, when the client took it."""

    at_s: float
    first_index: int
    tokens: int
    instance: str
    """The instance that made the tokens."""


@dataclass(frozen=True, slots=True)
class Downtime:
    """What a client felt of one change of owner, as the handover protocol defines it."""

    source: str
    destination: str
    index: int
    """The destination's first token."""
    gap_ms: float
    """From the source's last token to the destination's first."""
    itl_ms: float
    """The destination's median inter-token latency in this stream."""

    @property
    def ms(self) -> float:
        return self.gap_ms - self.itl_ms

    @property
    def steps(self) -> float:
        return self.ms / self.itl_ms


def turns(arrivals: Sequence[Arrival]) -> list[range]:
    """The places in `arrivals` of each owner's messages, one range from each change of owner to the next."""
    starts = [
        place
        for place, arrival in enumerate(arrivals)
        if not place or arrival.instance != arrivals[place - 1].instance
    ]
    return [range(start, end) for start, end in pairwise([*starts, len(arrivals)])]


def downtimes(arrivals: Sequence[Arrival], least_gaps: int = 1) -> list[Downtime]:
    """Every change of owner after which the destination's latency shows in `least_gaps` gaps or more."""
    found = []
    for turn in turns(arrivals)[1:]:
        latencies = inter_token_ms(arrivals[turn.start : turn.stop])
        if len(latencies) >= least_gaps:
            last, first = arrivals[turn.start - 1], arrivals[turn.start]
            gap_ms = (first.at_s - last.at_s) * 1e3
            found.append(
                Downtime(last.instance, first.instance, first.first_index, gap_ms, median(latencies))
            )
    return found


def inter_token_ms(arrivals: Sequence[Arrival]) -> list[float]:
    """Time from each message to the next, shared by the tokens that the later one brings."""
    return [(later.at_s - earlier.at_s) * 1e3 / later.tokens for earlier, later in pairwise(arrivals)]
