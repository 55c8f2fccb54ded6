"""What a session and its router say to each other: the router as a session sees it, moves, and tokens on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..handover.values import End, Incarnation, Logprobs, RouterMessage
from ..policy.dispatch import Assignment, NoInstance
from ..policy.state import InstanceView, RequestShape
from .wire import Call


class Mode(Enum):
    """How somebody wants a session moved."""

    LIVE = "live"
    BLOCKING = "blocking"
    RECOMPUTE = "recompute"
    UNBEGUN = "unbegun"
    """As before, but only while its owner has nothing of it to lose."""

    @property
    def recomputes(self) -> bool:
        return self in (Mode.RECOMPUTE, Mode.UNBEGUN)


@dataclass(frozen=True, slots=True)
class MoveWanted:
    """A move that the controller asks for. An empty destination is the freest other one."""

    ask: int
    session: str
    destination: str
    mode: Mode
    reason: str


@dataclass(frozen=True, slots=True)
class MoveResult:
    """What became of it. `seconds` from the ask to the first token of the new owner."""

    ask: int
    done: bool
    reason: str
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens for the client; `end` tells why the output ends with them, where it does."""

    first_index: int
    token_ids: tuple[int, ...]
    instance: str
    end: End | None
    logprobs: tuple[Logprobs, ...] = ()
    """One for each token, where they were asked for."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """With the first token, where they were asked for."""


class Fleet(Protocol):
    """What a session asks of the router that holds it."""

    def now(self) -> float: ...

    def lived(self) -> float:
        """Time in which instances could be heard; see `Router`."""
        ...

    def tell(self, instance: Incarnation, message: RouterMessage) -> None: ...

    def shape(self, call: Call, emitted: Sequence[int]) -> RequestShape:
        """The request as policies see it; what was `emitted` is to be computed again."""
        ...

    def dispatch(self, request: RequestShape, wanted: str, in_turn: bool) -> Assignment | NoInstance:
        """`wanted` names the instance that is to decode, or nobody. `in_turn`, none that has enough before it."""
        ...

    def redirect(
        self, request: RequestShape, avoid: frozenset[Incarnation], wanted: str
    ) -> InstanceView | NoInstance: ...

    def drains(self, instance: Incarnation) -> bool:
        """Whether the instance says that it begins nothing more."""
        ...

    def silence_s(self, owner: Incarnation | None) -> float:
        """How long the owner of a session may say nothing of it."""
        ...

    def moved(self, result: MoveResult) -> None: ...

    def first_token(self, call: Call, ttft_s: float, foreseen_s: float) -> None:
        """The first token of a request has come; so long it should have taken."""
        ...

    def prefilled(self, expected_s: float, took_s: float) -> None:
        """A first token came so long after its prompt was sent to an instance."""
        ...

    def completed(self, call: Call, emitted: Sequence[int], owner: Incarnation | None, tpot_s: float) -> None:
        """An output has come to its end."""
        ...

    def note(self, session: str, what: str, **figures: float | str) -> None:
        """Keep a decision with the figures that made it, and log it."""
        ...
