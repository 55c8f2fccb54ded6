"""A step in flight, as the engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .sequence import Sequence as Running
from .step import StepItem


class Landing(Protocol):
    """What comes of a step; see `Flight`."""

    def result(self) -> list[int | None]: ...


@dataclass(slots=True)
class Launch:
    """A step that was launched."""

    sequences: Sequence[Running]
    items: Sequence[StepItem]
    """One for each of `sequences`."""
    flight: Landing
    began: float
    looked_at: bool = field(init=False)
    """The step after it needs the tokens that it draws on the host."""

    def __post_init__(self) -> None:
        pairs = zip(self.sequences, self.items, strict=True)
        self.looked_at = any(item.sample is not None and sequence.looks_back for sequence, item in pairs)

    @property
    def places(self) -> dict[str, int]:
        """Where each session's item stands."""
        return {sequence.session: place for place, sequence in enumerate(self.sequences)}
