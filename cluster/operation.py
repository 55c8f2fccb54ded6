"""What is done with one instance just now, and how far it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum


class Phase(Enum):
    DRAINING = "draining"
    STARTING = "starting"
    SERVING = "serving"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is with an instance; counts are of its sessions."""

    instance: str
    phase: Phase
    left: int = 0
    recovered: int = 0
    """Not moved in time, and so prefilled again elsewhere."""


@dataclass(eq=False)
class Operation:
    """What is done with one instance just now."""

    what: str
    now: Progress
    task: asyncio.Task[None] = field(init=False)

    @property
    def instance(self) -> str:
        return self.now.instance

    def says(self, phase: Phase, left: int = 0, recovered: int = 0) -> None:
        self.now = Progress(self.instance, phase, left, recovered)
