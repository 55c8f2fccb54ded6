"""The router's part of the configuration, and what it must know of the model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..policy.cost import CostModel
from ..policy.fairness import Slo
from ..policy.rules import RULES


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Where the router listens, and its bounds. Times in seconds."""

    host: str = "127.0.0.1"
    """The interface to listen on."""

    port: int = 50051
    """The port to listen on; 0 takes a free one."""

    max_sessions: int = 1024
    """Most sessions (choices of requests) at once; a request above it is refused with RESOURCE_EXHAUSTED."""

    session_queue: int = 1024
    """Most messages that wait for a slow client of one session; above it the request ends with RESOURCE_EXHAUSTED."""

    client_wait_s: float = 30.0
    """How long one message waits for a client that reads nothing; then the request ends with RESOURCE_EXHAUSTED."""

    link_queue: int = 4096
    """Most messages that wait for one instance; above it the stream is broken and made anew."""

    dispatch_wait_s: float = 15.0
    """How long a session waits for an instance that can take it: at its start, when it is recovered, and after its
    prefill where nobody is there to decode it."""

    move_wait_s: float = 10.0
    """How long a move that was asked for waits for a handover that is under way."""

    dispatch: str = "predicted"
    """How instances are picked: `predicted` by the times that the cost model expects (without one, by the shortest
    queue of prompts and the most free memory), `freeness`, `least_loaded`, `power_of_two` or `round_robin`."""

    ahead_s: float = 0.5
    """Seconds of prompts that an instance is given ahead; while all have more, requests wait here for their turn.
    0 is no limit, and then nobody waits here."""

    queue: int = 512
    """Most sessions (choices of requests) that wait for their turn, and of resumed ones as many again; a request above
    it is refused with RESOURCE_EXHAUSTED."""

    normal: Slo = field(default_factory=Slo)
    """What requests of normal priority are promised."""

    high: Slo = field(default_factory=Slo)
    """What requests of high priority are promised, whose turn comes first."""

    max_recoveries: int = 16
    """How often a session is re-prefilled before it is given up."""

    stop_s: float = 5.0
    """How long a stop waits for open streams to end."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"router.port must be from 0 to 65535, not {self.port}.")
        if not self.host:
            raise ValueError("router.host must not be empty.")
        if self.dispatch not in RULES:
            raise ValueError(f"router.dispatch must be one of {', '.join(RULES)}, not {self.dispatch!r}.")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name not in ("port", "ahead_s") and isinstance(value, int | float) and value <= 0:
                raise ValueError(f"router.{entry.name} must be above 0, not {value}.")
        if not self.ahead_s >= 0:
            raise ValueError(f"router.ahead_s must be 0 or above, not {self.ahead_s}.")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The served model, as the router knows it."""

    name: str
    """What clients call it."""

    context_tokens: int
    """Most tokens of prompt and output together."""

    vocabulary: int
    """Token ids are below it."""

    tokenizer: Path | None = None
    """A `tokenizer.json`; without one, prompts are token ids and deltas have no text."""

    end_tokens: tuple[int, ...] = ()
    """Ids that end an output unless the request ignores them."""

    cost: CostModel | None = None
    """What steps and copies of its instances cost; None where nobody knows."""

    itl_target_s: float = 0.0
    """What steps with decodes are to take at most, by `cost`; 0 is no limit."""
