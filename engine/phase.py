"""What prefill and decode workers decide for the engine: values in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..policy.admission import Demand
from ..policy.batching import Budget


@dataclass(frozen=True, slots=True)
class Size:
    """A sequence as far as memory cares, in tokens."""

    context: int
    """Prompt and output so far."""
    most: int
    """Prompt and all the output that it may have."""


class Phase(Protocol):
    """One phase of a sequence. An instance loads both; its role is the numbers of its budget."""

    def demand(self, size: Size, role: Budget) -> Demand:
        """What a sequence that enters in this phase must find room for."""
        ...

    def wants_step(self, pending_tokens: int, role: Budget) -> bool:
        """Whether the sequence goes on here, or waits to be handed over."""
        ...
