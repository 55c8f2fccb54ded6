"""What was decided, and with which figures: bounded, by request, to be read back when somebody asks why."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SESSIONS = 2048
"""Sessions whose decisions are kept; the one that was noted least lately goes first."""
EACH = 256
"""Decisions kept of each: its first half, and the latest."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision or event. `figures` are what decided it, or what it cost; their names end in their units."""

    at: float
    """Unix time in seconds, on the clock of whoever noted it."""
    where: str
    session: str
    what: str
    figures: Mapping[str, float | str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.what, *(f"{name}={_short(value)}" for name, value in self.figures.items())])


class Journal:
    """Decisions by session. Any thread may note and read."""

    def __init__(self, where: str, clock: Callable[[], float], sessions: int = SESSIONS, each: int = EACH):
        self._where = where
        self._clock = clock
        self._most = sessions
        self._half = max(1, each // 2)
        self._kept: dict[str, tuple[list[Decision], deque[Decision]]] = {}
        self._lock = threading.Lock()

    def note(self, session: str, what: str, **figures: float | str) -> Decision:
        """Keep a decision, and return it for the log. A figure that is an empty text tells nothing, and is left out."""
        told = {name: value for name, value in figures.items() if value != ""}
        decision = Decision(self._clock(), self._where, session, what, told)
        with self._lock:
            first, latest = self._kept.pop(session, None) or ([], deque(maxlen=self._half))
            (first if len(first) < self._half else latest).append(decision)
            self._kept[session] = first, latest
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]
        return decision

    def of(self, prefix: str) -> list[Decision]:
        """The decisions of the sessions whose names begin so, each session's in order."""
        with self._lock:
            kept = [pair for session, pair in self._kept.items() if session.startswith(prefix)]
            return [decision for first, latest in kept for decision in (*first, *latest)]


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)
