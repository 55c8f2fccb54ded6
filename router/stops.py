"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes on text that can be no part of a stop string, and ends before the first stop string.

    Its state is a function of the text alone and not of how that was cut: the first stop string is the one that ends
    first, and of several that end there the longest.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        """The longest end of the text that may begin a stop string."""
        self._early = 0
        """So many characters of it came too early to end a stop string."""
        self.found = False

    def feed(self, piece: str, early: bool = False) -> str:
        """What is certain after this piece; no stop string ends within an `early` one, though one may begin there."""
        if not self._stops:
            return piece
        text = self._held + piece
        self._early = len(text) if early else self._early
        matches = [match for stop in self._stops if (match := self._first(stop, text))]
        if matches:
            self.found, self._held = True, ""
            _, start = min(matches)
            return text[:start]
        keep = min(self._may_begin(stop, text) for stop in self._stops)
        self._held, self._early = text[keep:], max(0, self._early - keep)
        return text[:keep]

    def rest(self) -> str:
        """What is held back, now that nothing follows."""
        rest, self._held = self._held, ""
        return rest

    def _first(self, stop: str, text: str) -> tuple[int, int] | None:
        """End and start of the first occurrence that does not end too early."""
        start = text.find(stop, max(0, self._early - len(stop) + 1))
        return None if start < 0 else (start + len(stop), start)

    @staticmethod
    def _may_begin(stop: str, text: str) -> int:
        """Where the longest end of `text` begins that is a beginning of `stop`."""
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while start >= 0 and not stop.startswith(text[start:]):
            start = text.find(stop[0], start + 1)
        return len(text) if start < 0 else start
