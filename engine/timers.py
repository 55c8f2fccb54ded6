"""The clocks of an instance's leases. The caller says what time it is."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from ..handover.config import HandoverConfig
from ..handover.effects import Clock
from ..handover.values import LeaseKey


class Timers:
    """One timer for each clock of a lease: started anew it fires once, the later time."""

    def __init__(self, config: HandoverConfig):
        self._after_s = {
            Clock.RESERVE: config.reserve_wait_s,
            Clock.SETTLE: config.hung_after_s,
            Clock.LEASE: config.lease_s,
            Clock.STOP: config.stop_s,
        }
        self._due: list[tuple[float, int, Clock, LeaseKey]] = []
        self._latest: dict[tuple[Clock, LeaseKey], int] = {}
        self._count = itertools.count()

    def start(self, clock: Clock, lease: LeaseKey, now: float) -> None:
        number = self._latest[clock, lease] = next(self._count)
        heapq.heappush(self._due, (now + self._after_s[clock], number, clock, lease))

    def fired(self, now: float) -> Iterator[tuple[Clock, LeaseKey]]:
        """Those due by `now`, the earliest first; others may be started meanwhile."""
        while self._due and self._due[0][0] <= now:
            _, number, clock, lease = heapq.heappop(self._due)
            if self._latest.get((clock, lease)) == number:
                del self._latest[clock, lease]
                yield clock, lease

    def next_due(self, at_most: float) -> float:
        """When the next is due, or that time where none is before it."""
        return min(at_most, self._due[0][0]) if self._due else at_most
