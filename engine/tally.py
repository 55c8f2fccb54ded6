"""How often a sequence has each of its tokens: what penalties look at. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Tally:
    """The distinct tokens of a prompt and its output so far, each with how often it was generated.

    Derived from the ids alone, so that it is never sent: built at once from those that a sequence comes with, then
    kept by `add`, which costs the same however long the sequence is.
    """

    __slots__ = ("_counts", "_ids", "_place", "_used")

    def __init__(self, prompt: Sequence[int], emitted: Sequence[int]):
        known, inverse = np.unique(np.array([*prompt, *emitted], dtype=np.int64), return_inverse=True)
        self._ids = known
        self._counts = np.bincount(inverse[len(prompt) :], minlength=len(known)).astype(np.int64)
        self._place = {token: place for place, token in enumerate(known.tolist())}
        self._used = len(known)

    def add(self, token: int) -> None:
        """One more token was generated."""
        place = self._place.setdefault(token, self._used)
        if place == self._used:
            self._used += 1
            if self._used > len(self._ids):
                self._ids = np.resize(self._ids, 2 * self._used)
                self._counts = np.resize(self._counts, 2 * self._used)
            self._ids[place], self._counts[place] = token, 0
        self._counts[place] += 1

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
