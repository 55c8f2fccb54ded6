"""Whose turn it is: requests that wait at a router, by class, and within a class the tenant that was served least.

The Virtual Token Counter (Sheng et al., OSDI 2024): each tenant's tokens are counted; one that comes back after a pause
is lifted to where the others are, so that nobody saves up for a burst. What could not meet its class' SLO is refused
when it comes rather than late.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .forecast import Pace

OUTPUT_WEIGHT = 2.0
"""What a token of output costs, in prompt tokens."""
TENANTS = 4096
"""Tenants whose counters are kept at most; of others the smallest are forgotten."""
MEASURED_S = 0.3
"""A queue that has moved for so long tells its rate."""
REMEMBERED_S = 10.0
"""The rate is of about the last such time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What requests of a class are to get; 0 promises nothing."""

    ttft_s: float = 0.0
    """Seconds to the first token. A request that is predicted to miss it is refused when it comes."""

    tpot_s: float = 0.0
    """Mean seconds for each token after it."""

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for its turn."""

    session: str
    tenant: str
    priority: int
    tokens: int
    """Of its prompt."""
    since: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """What each tenant was served, in prompt tokens, and how fast the queue moves."""

    served: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0
    """The counter of the tenant whose turn came last: where others begin when nobody else is here."""
    moving_since: float | None = None
    """Since when there was always one who waited."""
    moved_tokens: float = 0.0
    """Prompt tokens of those whose turn came since then."""

    def count(self, tenant: str) -> float:
        return self.served.get(tenant, 0.0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is not taken; it may fare better after `retry_s`."""

    reason: str
    retry_s: float


def arrived(ledger: Ledger, tenant: str, active: Collection[str]) -> Ledger:
    """A request of the tenant has come; `active` tenants are those that had some here before."""
    if tenant in active:
        return ledger
    least = min((ledger.count(other) for other in active), default=ledger.floor)
    return replace(ledger, served={**ledger.served, tenant: max(ledger.count(tenant), least)})


def charged(ledger: Ledger, tokens: Mapping[str, float], active: Collection[str]) -> Ledger:
    """Tenants were served so much more, in prompt tokens.

    Those that are not `active` and below everybody are forgotten: they would be lifted when they come.
    """
    served = dict(ledger.served)
    for tenant, count in tokens.items():
        served[tenant] = served.get(tenant, 0.0) + count
    least = min((served.get(tenant, 0.0) for tenant in active), default=ledger.floor)
    kept = {tenant: count for tenant, count in served.items() if tenant in active or count > least}
    if len(kept) > TENANTS:
        largest = sorted(kept, key=lambda tenant: (tenant in active, kept[tenant]), reverse=True)
        kept = {tenant: kept[tenant] for tenant in largest[:TENANTS]}
    return replace(ledger, served=kept)


def first(waiting: Iterable[Waiting], ledger: Ledger) -> Waiting | None:
    """Whose turn it is: the highest class, then the tenant served least, then who came first."""
    return min(
        waiting,
        key=lambda one: (-one.priority, ledger.count(one.tenant), one.since, one.session),
        default=None,
    )


def left(ledger: Ledger, one: Waiting, others: int, now: float) -> Ledger:
    """Its turn came, and so many `others` wait still: the prompt is on its tenant's account."""
    count = ledger.count(one.tenant)
    since = now if ledger.moving_since is None else ledger.moving_since
    moved = ledger.moved_tokens + one.tokens
    if now - since > REMEMBERED_S:
        since, moved = now - (now - since) / 2, moved / 2
    return replace(
        ledger,
        served={**ledger.served, one.tenant: count + one.tokens},
        floor=max(ledger.floor, count),
        moving_since=since if others else None,
        moved_tokens=moved if others else 0.0,
    )


def gave_up(ledger: Ledger, others: int) -> Ledger:
    """One went without its turn, and so many `others` wait still: it cost nobody anything, and moved nothing."""
    return ledger if others else replace(ledger, moving_since=None, moved_tokens=0.0)


def ahead_tokens(one: Waiting, waiting: Iterable[Waiting], ledger: Ledger) -> float:
    """Prompt tokens of those whose turn comes before it, if nobody else came.

    Of its own class, another tenant goes first until it was served as much.
    """
    higher, queued = 0.0, dict[str, float]()
    for other in waiting:
        if other.priority > one.priority:
            higher += other.tokens
        elif other.priority == one.priority:
            queued[other.tenant] = queued.get(other.tenant, 0.0) + other.tokens
    own = queued.pop(one.tenant, 0.0)
    level = ledger.count(one.tenant) + own
    same = sum(min(tokens, max(0.0, level - ledger.count(tenant))) for tenant, tokens in queued.items())
    return higher + own + same


def moved_per_s(ledger: Ledger, now: float) -> float | None:
    """Prompt tokens a second whose turn comes; None where the queue has not moved for long enough to tell."""
    if ledger.moving_since is None or now - ledger.moving_since < MEASURED_S:
        return None
    return ledger.moved_tokens / (now - ledger.moving_since)


def wait_s(one: Waiting, waiting: Iterable[Waiting], ledger: Ledger, pace: Pace, now: float) -> float:
    """Seconds until its prompt is begun: behind those that wait, as fast as they lately had their turns, and behind
    what the instances have before them."""
    ahead = ahead_tokens(one, waiting, ledger)
    rate = moved_per_s(ledger, now) or pace.tokens_per_s
    return pace.queue_s + (ahead / rate if rate else 0.0)


def refusal(
    waits: int,
    more: int,
    most: int,
    begins_s: float,
    prefill_s: float,
    usual_s: float,
    slo: Slo,
    late: float = 1.0,
) -> Refusal | None:
    """Why a request is not taken whose prompt would be begun after `begins_s` and computed in `prefill_s`.

    It brings so many `more` to those that wait, of which there are `waits` and may be `most`. To begin within `usual_s`
    is what any request gets, and no cause: else a prompt that alone takes longer than the SLO were never taken. What
    is foreseen takes up to `late` times as long.
    """
    if waits + more > most:
        return Refusal(f"{waits} requests wait already, and {most} may", max(begins_s, usual_s))
    first_s = late * (begins_s + prefill_s)
    if slo.ttft_s and first_s > slo.ttft_s and late * begins_s > usual_s:
        return Refusal(
            f"the first token is expected after {first_s:.2f} s, and promised after {slo.ttft_s:g} s",
            min(first_s - slo.ttft_s, late * begins_s),
        )
    return None
