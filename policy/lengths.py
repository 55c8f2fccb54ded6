"""How long the outputs of each application were lately."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Sequence

WINDOW = 512
"""Finished outputs that are remembered of each application."""
APPLICATIONS = 256
"""Applications that are remembered; the one not heard of for longest goes."""
ENOUGH = 16
"""Of fewer outputs nothing is concluded."""


class OutputLengths:
    """The last `WINDOW` output lengths of each application, ascending, and those of all together."""

    def __init__(self) -> None:
        self._all = _Window()
        self._of: OrderedDict[str, _Window] = OrderedDict()

    def add(self, application: str, length: int) -> None:
        """An output of so many tokens ended."""
        self._all.add(length)
        self._of.setdefault(application, _Window()).add(length)
        self._of.move_to_end(application)
        if len(self._of) > APPLICATIONS:
            self._of.popitem(last=False)

    def of(self, application: str) -> Sequence[int]:
        """Ascending; of all applications where this one has too few, and empty where those have too few as well."""
        for window in (self._of.get(application), self._all):
            if window is not None and len(window.ascending) >= ENOUGH:
                return window.ascending
        return ()


class _Window:
    def __init__(self) -> None:
        self.ascending: list[int] = []
        self._order: deque[int] = deque()

    def add(self, length: int) -> None:
        self._order.append(length)
        insort(self.ascending, length)
        if len(self._order) > WINDOW:
            del self.ascending[bisect_left(self.ascending, self._order.popleft())]
