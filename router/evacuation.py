"""Sessions leave an instance that is to be emptied, a few at a time, each with its KV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..handover.values import Incarnation
from ..policy.state import InstanceView
from .fleet import Mode, MoveWanted
from .session import LiveSession

AT_ONCE = 4
"""Moves out of one instance at a time: more would only share its link, and each would take longer."""
OWN = 0
"""The number under which this router asks for moves itself; the controller's are above it."""


def evacuate(
    sessions: Iterable[LiveSession], views: Iterable[InstanceView]
) -> list[tuple[LiveSession, MoveWanted]]:
    """The moves to ask for now: of sessions whose owner drains, or does not decode and is not about to hand over.

    The latter had another role when the session was sent there.
    """
    reasons = {Incarnation(view.name, view.life): reason for view in views if (reason := _reason(view))}
    if not reasons:
        return []
    owned = [(session, owner) for session in sessions if (owner := session.machine.owner) in reasons]
    under_way = Counter(owner for session, owner in owned if session.is_moving)
    moves = []
    for session, owner in owned:
        if owner is not None and session.may_move and under_way[owner] < AT_ONCE:
            under_way[owner] += 1
            moves.append((session, MoveWanted(OWN, session.key, "", Mode.LIVE, reasons[owner])))
    return moves


def _reason(view: InstanceView) -> str:
    if view.draining:
        return f"{view.name} drains"
    return f"{view.name} does not decode" if view.alive and not view.load.decode_slots else ""
