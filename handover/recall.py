"""Decisions that were noted, as `Decision` of the control service and back."""

from __future__ import annotations

from collections.abc import Iterable

from ..policy.journal import Decision
from ..proto import control_pb2 as pb

SEPARATOR = "#"
"""Ends the request's id in a session's name."""


def to_wire(decisions: Iterable[Decision]) -> list[pb.Decision]:
    return [_told(decision) for decision in decisions]


def from_wire(told: Iterable[pb.Decision]) -> list[Decision]:
    return [Decision(one.at, one.where, one.session, one.what, _figures(one)) for one in told]


def sessions_of(request_id: str) -> str:
    """How the names of a request's sessions begin, and no other's: no id has a `SEPARATOR`."""
    return f"{request_id}{SEPARATOR}"


def _figures(told: pb.Decision) -> dict[str, float | str]:
    values = ((name, told.figures[name]) for name in told.figures)
    return {name: value for name, value in values if isinstance(value, (float, str))}


def _told(decision: Decision) -> pb.Decision:
    told = pb.Decision(at=decision.at, where=decision.where, session=decision.session, what=decision.what)
    told.figures.update(decision.figures)
    return told
