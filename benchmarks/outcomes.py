"""What became of the requests of a load: their latencies, and how many of them were served as they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from ..cluster.workload import Request
from ..policy.fairness import Slo
from .figures import quantile
from .gaps import Arrival, inter_token_ms

LATE_S = 0.1
"""A request that is sent so long after its time shows that the generator has fallen behind."""


@dataclass(slots=True)
class Outcome:
    """One request. Times in seconds since the load began; latencies count from when it was due, sent late or not."""

    request: Request
    due_s: float
    sent_s: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    """What its client received."""
    ended_s: float = 0.0
    finish: str = ""
    """Why it ended, where it did as it should."""
    error: grpc.StatusCode | None = None
    message: str = ""
    """Of the error."""
    retry_s: float = 0.0
    """When the router told it to come back; 0 where it did not."""

    @property
    def tokens(self) -> int:
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def done(self) -> bool:
        return bool(self.finish)

    @property
    def refused(self) -> bool:
        """The cluster had no room for it, and said so before its first token."""
        return self.error is grpc.StatusCode.RESOURCE_EXHAUSTED and not self.arrivals

    @property
    def late_s(self) -> float:
        """How late it was sent: the generator's own fault."""
        return self.sent_s - self.due_s

    @property
    def lasted_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def ttft_s(self) -> float:
        """Infinite where no token came."""
        return self.arrivals[0].at_s - self.due_s if self.arrivals else math.inf

    @property
    def tpot_s(self) -> float:
        """Mean time between tokens; 0 where there were not two."""
        later = self.tokens - self.arrivals[0].tokens if self.arrivals else 0
        return (self.arrivals[-1].at_s - self.arrivals[0].at_s) / later if later else 0.0

    @property
    def itls_s(self) -> list[float]:
        """Time between neighbouring tokens."""
        return [each / 1e3 for each in inter_token_ms(self.arrivals)]

    def meets(self, slo: Slo) -> bool:
        """Both of its promises."""
        return self.done and self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


def attainment(outcomes: Iterable[Outcome], slo: Slo) -> float:
    """The share that was served within both limits; 0 of none."""
    met = [outcome.meets(slo) for outcome in outcomes]
    return sum(met) / len(met) if met else 0.0


def lateness(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, str]]:
    """How far the generator kept up, as figures with their units."""
    late_s = [outcome.late_s for outcome in outcomes]
    return {
        "late_p99_ms": (1e3 * quantile(late_s, 0.99) if late_s else 0.0, "ms"),
        "fell_behind": (sum(each > LATE_S for each in late_s), "requests"),
    }


def latencies(outcomes: Iterable[Outcome]) -> dict[str, tuple[float, str]]:
    """Of those that have a first token: time to it, mean and single times between tokens, as figures with units."""
    served = [outcome for outcome in outcomes if outcome.arrivals]
    samples = {
        "ttft": [outcome.ttft_s for outcome in served],
        "tpot": [outcome.tpot_s for outcome in served if outcome.tokens > 1],
        "itl": [itl_s for outcome in served for itl_s in outcome.itls_s],
    }
    return {
        f"{name}_{part}_s": (quantile(values, share), "s")
        for name, values in samples.items()
        for part, share in (("p50", 0.5), ("p99", 0.99))
        if values
    }
