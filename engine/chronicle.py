"""What an engine notes of the sequences that it runs: how long they queued, their chunks, and what their stay came to.

Nothing is noted of a decode step, lest notes cost what they tell of: a stay's steps are counted by its ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..handover.values import Epoch, LeaseKey
from ..policy.journal import Journal
from .sequence import Sequence


@dataclass(slots=True)
class _Stay:
    came_at: float
    queued_at: float
    made: int
    """Tokens of output that it came with."""
    waits: bool = True
    """For its first step here, or since its memory was taken."""
    asked_at: float = 0.0
    """When a destination was last asked for room."""
    paused_at: float | None = None


class Chronicle:
    """Notes in `journal`; `clock` measures how long things took."""

    def __init__(self, journal: Journal, clock: Callable[[], float] = time.monotonic):
        self._journal = journal
        self._clock = clock
        self._stays: dict[LeaseKey, _Stay] = {}
        """By the sequence's key: where a session starts anew, its next sequence may come before the last one goes."""

    def queued(self, sequence: Sequence) -> None:
        """It is here, to be prefilled."""
        self._came(sequence, waits=True)
        self._note(sequence.session, "queued", tokens=len(sequence.tokens), epoch=_told(sequence.epoch))

    def adopted(self, sequence: Sequence, blocks: int) -> None:
        """It has arrived with its KV."""
        self._came(sequence, waits=False)
        epoch = _told(sequence.epoch)
        self._note(sequence.session, "adopted", tokens=sequence.computed, blocks=blocks, epoch=epoch)

    def chunk(self, sequence: Sequence, start: int, tokens: int, batch: int, step_s: float) -> None:
        """A step computed so many of its prompt's tokens, from `start` on, beside the rest of a `batch`."""
        figures: dict[str, float] = {"from": start, "tokens": tokens, "batch": batch, "step_s": step_s}
        stay = self._stays.get(sequence.key)
        if stay is not None and stay.waits:
            stay.waits = False
            figures |= {"queue_s": self._clock() - stay.queued_at - step_s, "hit_tokens": start}
        self._note(sequence.session, "chunk", **figures)

    def preempted(self, sequence: Sequence) -> None:
        """It gave its memory back."""
        stay = self._stays.get(sequence.key)
        if stay is not None:
            stay.waits, stay.queued_at = True, self._clock()
        self._note(sequence.session, "preempted", tokens=len(sequence.tokens))

    def reserving(self, sequence: Sequence, destination: str, blocks: int) -> None:
        """A destination is asked for room."""
        stay = self._stays.get(sequence.key)
        if stay is not None:
            stay.asked_at = self._clock()
        self._note(sequence.session, "reserving", destination=destination, blocks=blocks)

    def granted(self, sequence: Sequence, destination: str, have: int) -> None:
        """A destination has room, and so many leading blocks already."""
        stay = self._stays.get(sequence.key)
        wait_s = self._clock() - stay.asked_at if stay is not None else 0.0
        self._note(sequence.session, "granted", destination=destination, have_blocks=have, wait_s=wait_s)

    def paused(self, sequence: Sequence) -> None:
        """It runs no further here, unless its handover fails."""
        stay = self._stays.get(sequence.key)
        if stay is not None:
            stay.paused_at = self._clock()

    def gone(self, sequence: Sequence) -> None:
        """It is here no more: it ended, another instance owns it, or it is void."""
        stay = self._stays.pop(sequence.key, None)
        if stay is None:
            return
        now = self._clock()
        figures: dict[str, float] = {"made_tokens": sequence.made - stay.made, "seconds": now - stay.came_at}
        if stay.paused_at is not None:
            figures["stall_s"] = now - stay.paused_at
        self._note(sequence.session, "gone", **figures)

    def renamed(self, was: LeaseKey, sequence: Sequence) -> None:
        """It is owned under another epoch from here on."""
        if was in self._stays:
            self._stays[sequence.key] = self._stays.pop(was)

    def resumed(self, sequence: Sequence) -> None:
        """Its handover failed: it runs on."""
        stay = self._stays.get(sequence.key)
        if stay is not None and stay.paused_at is not None:
            stall_s, stay.paused_at = self._clock() - stay.paused_at, None
            self._note(sequence.session, "resumed", stall_s=stall_s, epoch=_told(sequence.epoch))

    def _came(self, sequence: Sequence, waits: bool) -> None:
        now = self._clock()
        self._stays[sequence.key] = _Stay(now, now, sequence.made, waits)

    def _note(self, session: str, what: str, **figures: float | str) -> None:
        self._journal.note(session, what, **figures)


def _told(epoch: Epoch) -> str:
    return f"{epoch.attempt}.{epoch.n}"
