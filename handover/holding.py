"""The sequence that a seat owns: its records, as far as anybody may still ask for them, and how far its KV is."""

from __future__ import annotations

from typing import NamedTuple

from . import rules
from .source import Source
from .values import Epoch, TokenRecord


class Progress(NamedTuple):
    """How far the sequence's KV is, in blocks of its table and in tokens; see `Stepped`."""

    full: int
    blocks: int
    computed: int
    ready: bool
    passed: int


class Holding(NamedTuple):
    """The sequence owned here, its records from index `first` on.

    The router has seen what lies before `seen`, and was told what lies before `told`.
    """

    epoch: Epoch
    router: str
    first: int
    seen: int
    told: int
    records: tuple[TokenRecord, ...] = ()
    ended: bool = False
    progress: Progress | None = None
    begun: bool = False
    """It has KV here, or a step was launched with it."""

    @property
    def made(self) -> int:
        return self.first + len(self.records)

    def since(self, index: int) -> tuple[TokenRecord, ...]:
        return rules.unseen(self.records, self.first, index)

    def trimmed(self, source: Source | None) -> Holding:
        """Without the records that neither the router nor a destination will ask for again."""
        first = self.needed(source)
        return self if first == self.first else self._replace(first=first, records=self.since(first))

    def needed(self, source: Source | None) -> int:
        """The first token that the router or a destination may still ask for, of those that are here."""
        return max(self.first, self.seen if source is None else min(self.seen, source.reserved_at))
