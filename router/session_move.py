"""The moves that were asked for of one session: one under way, and one that waits for its end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..handover.effects import MoveEnded
from ..handover.values import Incarnation
from .fleet import Fleet, MoveResult, MoveWanted


@dataclass(slots=True)
class SessionMove:
    """A wanted move. `to` is known once the protocol's session was asked."""

    wanted: MoveWanted
    since: float
    source: str = ""
    to: Incarnation | None = None
    landed: bool = False


class SessionMoves:
    """Follows moves to their ends; `Fleet.moved` hears of each once."""

    def __init__(self, session: str, fleet: Fleet, wait_s: float):
        self._session = session
        self._fleet = fleet
        self._wait_s = wait_s
        self._current: SessionMove | None = None
        self._next: SessionMove | None = None
        """Asked for while another was under way, as when somebody wants what is being balanced elsewhere."""

    @property
    def under_way(self) -> bool:
        return self._current is not None

    @property
    def waiting(self) -> bool:
        return self._next is not None

    def ask(self, wanted: MoveWanted) -> None:
        """Not while one is `waiting`."""
        assert self._next is None
        self._next = SessionMove(wanted, self._fleet.now())

    def due(self) -> SessionMove | None:
        """One that has not begun, and may still."""
        self._turn()
        move = self._current
        if move is None or move.to is not None:
            return None
        if self._fleet.now() - move.since > self._wait_s:
            self.over(False, "another handover is under way")
            return None
        return move

    @property
    def recomputed_at(self) -> str:
        """Which instance is to prefill it again, where that is its move; empty where nobody asked for one."""
        move = self._current
        recomputes = move is not None and move.wanted.mode.recomputes and move.to
        return recomputes.instance if recomputes else ""

    def refused_by(self, instances: Collection[Incarnation]) -> None:
        if self._current is not None and self._current.to in instances:
            self.over(False, "it did not take the request")

    def sent(self, to: Incarnation) -> None:
        """A move that has begun fails where the session is dispatched anew, and not to where it was to go."""
        move = self._current
        if move is not None and move.to not in (None, to):
            self.over(False, f"it was prefilled again, for {to.instance}")

    def ended(self, ended: MoveEnded) -> None:
        """What became of it by the protocol's session; one that is done is over with its first token."""
        if self._current is None or self._current.to != ended.destination:
            return
        if ended.done:
            self._current.landed = True
        else:
            self.over(False, ended.reason)

    def landed(self, maker: Incarnation) -> None:
        """A token has come from `maker`: a move to it is done."""
        move = self._current
        if move is not None and move.to == maker and (move.landed or move.wanted.mode.recomputes):
            self.over(True, "")

    def close(self, reason: str) -> None:
        """The session has ended."""
        self.over(self._current is not None and self._current.landed, reason)
        self._turn()
        self.over(False, reason)

    def over(self, done: bool, reason: str) -> None:
        move, self._current = self._current, None
        if move is not None:
            seconds = self._fleet.now() - move.since
            what = "moved" if done else "not_moved"
            self._fleet.note(self._session, what, source=move.source, seconds=seconds, reason=reason)
            self._fleet.moved(MoveResult(move.wanted.ask, done, reason, seconds, move.source))

    def _turn(self) -> None:
        if self._current is None:
            self._current, self._next = self._next, None
