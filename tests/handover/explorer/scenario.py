"""What a scenario is: sizes, what may happen in it and how often, and how its session begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.handover.values import MoveMode

from .instance import Shape

KINDS = (
    "lose",
    "double",
    "early",
    "crash",
    "boot",
    "hang",
    "wake",
    "part",
    "heal",
    "break",
    "suspect",
    "router",
    "restart",
    "cut",
    "resume",
    "move",
    "drain",
    "cancel",
    "preempt",
)
"""What may happen a bounded number of times.

`boot`, `wake`, `heal`, `restart`, `resume`, `move`, `drain`, `cancel` and `preempt` are choices, the others faults.
"""
CHOICES = frozenset({"boot", "wake", "heal", "restart", "resume", "move", "drain", "cancel", "preempt"})
FAULTS = frozenset(KINDS) - CHOICES
LOSSES = tuple(KINDS.index(kind) for kind in ("lose", "crash", "hang", "part", "break", "router", "cut"))
"""Those of the faults by which something is lost."""
EARLY, BREAK = KINDS.index("early"), KINDS.index("break")

TWO, THREE = "AB", "ABC"


@dataclass(frozen=True)
class Scenario:
    """Sizes, what may happen and how often, and how the session begins."""

    name: str
    shape: Shape = Shape()
    budget: dict[str, int] = field(default_factory=dict)
    faults: int = 99
    """Most faults in all."""
    instances: str = TWO
    routers: int = 1
    mode: MoveMode = MoveMode.LIVE
    handover: bool = True
    """The session starts at A and is to be handed over to B; otherwise it starts at A."""
    crashing: str = THREE
    hanging: str = THREE
    parting: str = THREE
    draining: str = THREE
    serving: str = THREE
    """Where a session that was recovered or resumed may be sent."""
    picks_anew: bool = True
    """Another destination is picked where the first handover came to nothing; otherwise the session stays."""
    recover_by_silence: bool = True
    ordered: bool = False
    """Messages from one party to another keep their order, as those of a stream do."""
    early: frozenset[str] = frozenset(
        {"reserve", "settle", "lease", "stop", "beat", "silence", "grace", "nudge"}
    )
    """What may come before its time: an instance's clocks, heartbeats, the router's patience, the grace time."""
