"""Frames of `WorkerService` that concern no single session: who speaks, that it lives, and what is batched.

What the machines say to each other stands in `values`; `wire` turns both into protobuf and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..policy.state import LoadView
from .effects import Condemn
from .values import Address, Ask, Incarnation, Move, News, PeerMessage, Resume, Revoke, Seen, Start, Unmoved


@dataclass(frozen=True, slots=True)
class Hello:
    """First on every Link: which router speaks, and the life that it means to speak to."""

    router: str
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Beat:
    """The router lives, though it has nothing to say."""


@dataclass(frozen=True, slots=True)
class SeenBatch:
    """All that the router has seen of one step."""

    seen: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Dead:
    """From the controller: these lives have ended for certain, and nothing of theirs can write any more."""

    incarnations: tuple[Incarnation, ...]


@dataclass(frozen=True, slots=True)
class Assign:
    """From the controller: the role that the instance is to have from now on, and whether it is to be emptied."""

    prefill_tokens: int
    decode_slots: int
    drain: bool


@dataclass(frozen=True, slots=True)
class Welcome:
    """The instance's answer to `Hello`. `vocabulary` and `context_tokens` are the model's."""

    incarnation: Incarnation
    fingerprint: str
    context_tokens: int
    vocabulary: int
    pid: int


@dataclass(frozen=True, slots=True)
class Step:
    """One a step, holding all its tokens for this router; also the heartbeat."""

    news: tuple[News, ...] = ()
    load: LoadView | None = None


@dataclass(frozen=True, slots=True)
class PeerHello:
    """First on every Peer stream: who speaks, where it listens, and the life that it means."""

    sender: Address
    to: Incarnation


@dataclass(frozen=True, slots=True)
class PairOffer:
    """Where both ends of a new pair meet: a store at `host`:`port`."""

    pair: str
    host: str
    port: int
    backend: str


class TurnKind(IntEnum):
    """What an instance says of the transfer turn."""

    ASK = 1
    GRANT = 2
    DENY = 3
    RELEASE = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """Both ends of a pair hold their transfer turn before message number `sequence` starts."""

    pair: str
    sequence: int
    kind: TurnKind


RouterFrame = Hello | Start | Move | Resume | Revoke | SeenBatch | Beat | Dead | Assign
"""What a Link carries from a router."""
InstanceFrame = Welcome | Step | Unmoved | Ask | Condemn
"""What a Link carries from an instance."""
PeerFrame = PeerHello | PeerMessage | PairOffer | Turn
"""What a Peer stream carries."""
