"""How often a sequence has each of its tokens: what penalties look at. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tally:
    """The distinct tokens of a prompt and its output so far, each with how often it was generated.

    Derived from the ids alone, so that it is never sent: built at once from those that a sequence comes with, then
    kept by `add`, which costs the same however long the sequence is.
    """

    __slots__ = ("_counts", "_ids", "_place", "_sorted", "_used")

    def __init__(self, prompt: Sequence[int], emitted: Sequence[int]):
        generated = np.bincount(np.array(emitted, dtype=np.int64))
        present = np.bincount(np.array(prompt, dtype=np.int64), minlength=len(generated))
        present[: len(generated)] += generated
        self._ids = np.flatnonzero(present)
        self._counts = np.pad(generated, (0, len(present) - len(generated)))[self._ids]
        self._sorted = self._used = len(self._ids)
        self._place: dict[int, int] = {}
        """Of tokens that were added."""

    def add(self, token: int) -> None:
        """One more token was generated."""
        place = self._place.get(token)
        if place is None:
            place = self._place[token] = self._find(token)
        self._counts[place] += 1

    def _find(self, token: int) -> int:
        """Its place among the first ids, which ascend, or a new one behind."""
        place = int(np.searchsorted(self._ids[: self._sorted], token))
        if place < self._sorted and self._ids[place] == token:
            return place
        if self._used == len(self._ids):
            self._ids = np.resize(self._ids, 2 * self._used + 16)
            self._counts = np.resize(self._counts, 2 * self._used + 16)
        self._ids[self._used], self._counts[self._used] = token, 0
        self._used += 1
        return self._used - 1

    @property
    def ids(self) -> np.ndarray:
        """The distinct tokens, int64; a view that the next `add` may change."""
        return self._ids[: self._used]

    @property
    def counts(self) -> np.ndarray:
        """How often each of `ids` was generated, int64; 0 for those of the prompt alone."""
        return self._counts[: self._used]

    def __len__(self) -> int:
        return self._used

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and self._table() == other._table()

    __hash__ = None  # type: ignore[assignment]

    def _table(self) -> dict[int, int]:
        return dict(zip(self.ids.tolist(), self.counts.tolist(), strict=True))
