"""How fast an instance copies while it steps."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Keeps copies to a share of the time while steps run: after a message they rest in proportion to what it took.

    A rest is no longer than `most_s`, for leases run meanwhile.
    """

    def __init__(
        self,
        share: float,
        most_s: float,
        stepping: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`stepping` says whether steps run now: nobody is disturbed where none does."""
        assert 0 < share <= 1
        self._rest = 1 / share - 1
        self._most_s = most_s
        self._stepping = stepping
        self._clock = clock
        self._until = 0.0

    def took(self, duration_s: float) -> None:
        """A message has just ended. What is owed adds up where messages overtook a rest."""
        if self._stepping():
            now = self._clock()
            owed_s = max(self._until - now, 0.0) + duration_s * self._rest
            self._until = now + min(owed_s, self._most_s)

    @property
    def left_s(self) -> float:
        """How long a message that is not urgent is still to wait."""
        return max(0.0, self._until - self._clock()) if self._stepping() else 0.0
