"""What is the same for all sessions at one incarnation of an instance."""

from __future__ import annotations

from dataclasses import dataclass

from .config import HandoverConfig
from .values import Incarnation, Layout


@dataclass(frozen=True, slots=True)
class House:
    """What all seats of one incarnation share."""

    me: Incarnation
    fingerprint: str
    layout: Layout
    config: HandoverConfig
    reaches: frozenset[str] = frozenset()
    """Instances whose memory this one writes in place."""
    draining: bool = False
    """It takes nothing more, and is to be emptied."""
