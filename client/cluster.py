"""What the cluster says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..proto import control_pb2 as pb

MODES = {
    "live": pb.MOVE_MODE_LIVE,
    "blocking": pb.MOVE_MODE_BLOCKING,
    "recompute": pb.MOVE_MODE_RECOMPUTE,
}


@dataclass(frozen=True, slots=True)
class Role:
    """How many prompt tokens a step may take, and how many sequences may decode."""

    prefill_tokens: int
    decode_slots: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the KV blocks are; the five add up to `total`.

    When nothing runs none is held or leased, and free + cached = total once the last writer that was in doubt has
    answered or ended, until when its blocks are quarantined.
    """

    total: int
    free: int
    cached: int
    held: int
    leased: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Work:
    """What an instance has done since it began."""

    steps: int
    asked_tokens: int
    """Of all prompts begun."""
    hit_tokens: int
    """How many of these were cached, and not computed."""
    preemptions: int
    """How often a sequence had to give its memory back."""
    swapped_blocks: int
    """KV blocks that went to host memory and came back."""
    written_blocks: int
    """KV blocks that left by writing them in place, in another instance's memory."""
    sent_blocks: int
    """KV blocks that left over a process group."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance; `state` is `starting`, `serving`, `draining` or `lost`."""

    name: str
    life: int
    pool: str
    state: str
    address: str
    pid: int
    role: Role
    blocks: Blocks
    waiting: int
    running: int
    heartbeat_age_s: float
    restarts: int
    rss_bytes: int
    work: Work
    reason: str
    """Why its last life ended; empty once the next one serves."""


@dataclass(frozen=True, slots=True)
class Router:
    name: str
    address: str
    pid: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Session:
    """One choice of a running request, and the instance that owns it."""

    request_id: str
    choice: int
    router: str
    owner: str
    prompt_tokens: int
    emitted_tokens: int


@dataclass(frozen=True, slots=True)
class Cluster:
    cluster: str
    model: str
    instances: tuple[Instance, ...]
    routers: tuple[Router, ...]
    sessions: tuple[Session, ...]
    changes: tuple[Decision, ...] = ()
    """What pools did by themselves lately, and what came of it, oldest first; `session` is the pool."""


@dataclass(frozen=True, slots=True)
class Move:
    """What became of a move; `seconds` from the ask to the first token of the new owner."""

    choice: int
    source: str
    destination: str
    done: bool
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What a router, an instance or the controller decided or did for a request or a pool, with its figures."""

    at: float
    """Unix time in seconds, on the clock of who noted it."""
    where: str
    session: str
    what: str
    figures: Mapping[str, float | str]
    """Names end in their units."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is remembered of a request, in the order of its times; `silent` did not answer."""

    decisions: tuple[Decision, ...]
    silent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an operation is with one instance; `phase` is `draining`, `starting`, `serving` or `ended`."""

    instance: str
    phase: str
    requests: int
    """Requests that are still to leave the instance."""
    recovered: int
    """Requests that could not be moved in time, and are prefilled again elsewhere."""
    seconds: float
    """Since the operation began."""
    done: bool
    """The whole operation has come to its end."""


def from_progress(said: Any) -> Progress:
    """Of any response that carries progress."""
    phase = pb.Phase.Name(said.progress.phase).removeprefix("PHASE_").lower()
    return _value(Progress, said.progress, phase=phase)


def from_watch(said: pb.WatchClusterResponse) -> Cluster:
    return from_cluster(said.cluster)


def from_cluster(said: pb.GetClusterResponse) -> Cluster:
    return Cluster(
        cluster=said.cluster,
        model=said.model,
        instances=tuple(map(_instance, said.instances)),
        routers=tuple(_value(Router, router) for router in said.routers),
        sessions=tuple(_value(Session, session) for session in said.sessions),
        changes=tuple(map(_decision, said.changes)),
    )


def from_moves(said: pb.MigrateRequestResponse) -> tuple[Move, ...]:
    return tuple(_value(Move, move) for move in said.moves)


def from_explanation(said: pb.ExplainRequestResponse) -> Explanation:
    return Explanation(tuple(map(_decision, said.decisions)), tuple(said.silent))


def _decision(said: pb.Decision) -> Decision:
    return _value(Decision, said, figures={name: said.figures[name] for name in sorted(said.figures)})


def migrate_request(
    request_id: str, destination: str | None, choice: int | None, mode: str
) -> pb.MigrateRequestRequest:
    """`ValueError` for a mode that is none."""
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no way to move a request; there are {', '.join(MODES)}.")
    return pb.MigrateRequestRequest(
        request_id=request_id, destination=destination or "", choice=choice, mode=MODES[mode]
    )


def _instance(said: pb.Instance) -> Instance:
    state = pb.InstanceState.Name(said.state).removeprefix("INSTANCE_STATE_").lower()
    parts = {
        "role": _value(Role, said.role),
        "blocks": _value(Blocks, said.blocks),
        "work": _value(Work, said.work),
    }
    return _value(Instance, said, state=state, **parts)


def _value(kind: Any, said: Any, **known: Any) -> Any:
    """The dataclass with the message's fields of the same names, but for those `known`."""
    names = kind.__dataclass_fields__.keys() - known.keys()
    return kind(**known, **{name: getattr(said, name) for name in names})
