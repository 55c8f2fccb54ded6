"""Requests that wait at the router because every instance has enough before it: in turns, and not without end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from ..policy import fairness
from ..policy.fairness import OUTPUT_WEIGHT, Ledger, Refusal, Slo, Waiting
from ..policy.forecast import Pace
from ..policy.state import Priority
from .config import RouterConfig
from .wire import Call


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Seconds until a prompt is begun, and that it takes."""

    begins_s: float
    prefill_s: float

    @property
    def first_s(self) -> float:
        return self.begins_s + self.prefill_s


class Turns:
    """Who waits, and what each tenant was served. Every call that `enter`s must `leave`, once."""

    def __init__(self, config: RouterConfig):
        self._config = config
        self._ledger = Ledger()
        self._waiting: dict[str, Waiting] = {}
        self._resumed: set[str] = set()
        """Those of later attempts, until they leave."""
        self._tenants: Counter[str] = Counter()
        """Sessions of each tenant, those that wait and those that are served."""
        self._owed: Counter[str] = Counter()
        """Tokens of output that are not on a tenant's account yet."""

    def __len__(self) -> int:
        return len(self._waiting)

    def foresee(self, call: Call, replaced: Collection[str], pace: Pace, now: float) -> Foreseen:
        """What a request has before it, whose sessions take the place of those `replaced`."""
        one = _waiting(call, now)
        begins_s = fairness.wait_s(one, self._others(replaced), self._ledger, pace, now)
        return Foreseen(begins_s, pace.prefill_s(one.tokens))

    def refusal(
        self, call: Call, choices: int, replaced: Collection[str], foreseen: Foreseen, late: float
    ) -> Refusal | None:
        """Why the request is not taken, whose sessions take the place of those `replaced`: too many wait, or it would
        miss its SLO, for all that is foreseen takes up to `late` times as long.

        Who is resumed was taken once, be it by another router: it has a queue apart, and no SLO.
        """
        config, resumed = self._config, call.attempt > 1
        slo = Slo() if resumed else slo_of(config, call.priority)
        waits = sum((other.session in self._resumed) == resumed for other in self._others(replaced))
        times = foreseen.begins_s, foreseen.prefill_s
        return fairness.refusal(waits, choices, config.queue, *times, config.ahead_s, slo, late)

    def _others(self, replaced: Collection[str]) -> list[Waiting]:
        return [one for one in self._waiting.values() if one.session not in replaced]

    def enter(self, call: Call, now: float) -> None:
        self._ledger = fairness.arrived(self._ledger, call.tenant, self._active)
        self._tenants[call.tenant] += 1
        self._waiting[call.session] = _waiting(call, now)
        if call.attempt > 1:
            self._resumed.add(call.session)

    def first(self) -> str | None:
        """The session whose turn it is."""
        one = fairness.first(self._waiting.values(), self._ledger)
        return one.session if one else None

    def placed(self, session: str, now: float) -> None:
        """Its turn has come."""
        one = self._waiting.pop(session)
        self._ledger = fairness.left(self._ledger, one, len(self._waiting), now)

    def gave_up(self, session: str) -> None:
        """Its turn does not come any more."""
        if self._waiting.pop(session, None) is not None:
            self._ledger = fairness.gave_up(self._ledger, len(self._waiting))

    def overdue(self, before: float) -> list[str]:
        """Sessions that have waited since then."""
        return [one.session for one in self._waiting.values() if one.since < before]

    def made(self, tenant: str, tokens: int) -> None:
        """Output of a tenant's; `settle` puts it on the account."""
        self._owed[tenant] += tokens

    def settle(self) -> None:
        """To be called now and then: it costs as much as there are tenants."""
        if self._owed:
            tokens = {tenant: OUTPUT_WEIGHT * count for tenant, count in self._owed.items()}
            self._owed.clear()
            self._ledger = fairness.charged(self._ledger, tokens, self._active)

    def leave(self, call: Call) -> None:
        """It has ended, whether its turn came or not."""
        self.gave_up(call.session)
        self._resumed.discard(call.session)
        self._tenants[call.tenant] -= 1
        if not self._tenants[call.tenant]:
            del self._tenants[call.tenant]

    @property
    def _active(self) -> Collection[str]:
        return self._tenants.keys()


def slo_of(config: RouterConfig, priority: int) -> Slo:
    """What the class of this priority is promised."""
    return config.high if priority >= Priority.HIGH else config.normal


def _waiting(call: Call, now: float) -> Waiting:
    """A client that has some of its output already is before all that have none."""
    priority = Priority.HIGH + 1 if call.received else call.priority
    return Waiting(call.session, call.tenant, priority, len(call.prompt) + len(call.received), now)
