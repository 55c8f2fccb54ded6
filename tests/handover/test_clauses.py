"""Clauses of the protocol that are no guard of `rules`: each is needed, or one of two that do the same is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from explorer.scenario import Scenario
from explorer.scenarios import ONE_BLOCK, SPLIT, early
from explorer.search import explore

from penstock.handover.effects import Tell, ToPeer, ToRouter
from penstock.handover.seat import Seat
from penstock.handover.session import Session
from penstock.handover.values import Epoch, Revoke, Stop

Change = tuple[type, str, Callable]

_revoke, _grant, _moved = Seat._revoke, Seat._grant, Seat._move
_close, _recover, _unmoved = Session._close, Session._recover, Session._unmoved


def _revoke_leaves_the_mark(seat, bound):
    after, effects = _revoke(seat, bound)
    return after._replace(mark=seat.mark), effects


def _grant_is_not_stopped(seat, grant, house):
    after, effects = _grant(seat, grant, house)
    return after, [e for e in effects if not (isinstance(e, ToPeer) and isinstance(e.message, Stop))]


def _without_revokes(effects):
    return [e for e in effects if not (isinstance(e, Tell) and isinstance(e.message, Revoke))]


def _cancel_is_not_told(session, effects, end):
    after, effects = _close(session, effects, end)
    return after, effects if end is not None else _without_revokes(effects)


def _end_is_not_told(session, effects, end):
    after, effects = _close(session, effects, end)
    return after, effects if end is None else _without_revokes(effects)


def _recovery_is_not_told(session, reason):
    after, effects = _recover(session, reason)
    return after, _without_revokes(effects)


def _unmoved_means_any_move(session, sender, unmoved):
    if session.pending is not None:
        unmoved = replace(unmoved, next_epoch=Epoch(session.attempt, session.pending.n))
    return _unmoved(session, sender, unmoved)


def _unmoved_answers_any_move(seat, move, house):
    if seat.unmoved is not None and seat.holding is not None and seat.source is None:
        return seat, [ToRouter(seat.holding.router, seat.unmoved)]
    return _moved(seat, move, house)


MARK: Change = (Seat, "_revoke", _revoke_leaves_the_mark)
GRANT: Change = (Seat, "_grant", _grant_is_not_stopped)
CANCEL: Change = (Session, "_close", _cancel_is_not_told)
END: Change = (Session, "_close", _end_is_not_told)
RECOVERY: Change = (Session, "_recover", _recovery_is_not_told)
UNMOVED: Change = (Session, "_unmoved", _unmoved_means_any_move)
ANSWER: Change = (Seat, "_move", _unmoved_answers_any_move)

PREEMPTED = Scenario("a grant comes after its reservation was given up", ONE_BLOCK, {"preempt": 1})
SUSPECTED = Scenario(
    "an owner that lives is recovered", ONE_BLOCK, {"suspect": 1}, handover=False, serving="B"
)

NEEDED: dict[str, tuple[tuple[Change, ...], Scenario]] = {
    "a revoke raises the mark": (
        (MARK,),
        Scenario("a start comes after the cancel", ONE_BLOCK, {"cancel": 1}),
    ),
    "a cancel is told to all": (
        (CANCEL,),
        Scenario("one that waits is cancelled", SPLIT, {"cancel": 1}),
    ),
    "the router knows by its epoch which move an unmoved is about": (
        (UNMOVED,),
        Scenario(
            "another destination is found before the first is forgotten",
            SPLIT,
            {"double": 1, "early": 1},
            early=frozenset({"reserve"}),
        ),
    ),
    "an instance knows by its epoch which move it has refused": (
        (ANSWER,),
        Scenario("a second destination", SPLIT, **early("reserve")),
    ),
    "an unmatched grant is stopped, or the end is told to all": ((GRANT, END), PREEMPTED),
    "a recovery is told to all, or the end is": ((RECOVERY, END), SUSPECTED),
}
ONE_OF_TWO = {"stop": (GRANT, PREEMPTED), "end": (END, PREEMPTED), "recovery": (RECOVERY, SUSPECTED)}


def _without(monkeypatch: pytest.MonkeyPatch, *changes: Change) -> None:
    for owner, name, changed in changes:
        monkeypatch.setattr(owner, name, changed)


@pytest.mark.parametrize("clause", NEEDED)
def test_without_it_a_law_breaks(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, scenario = NEEDED[clause]
    _without(monkeypatch, *changes)
    found = explore(scenario, 150_000)
    assert found.breach is not None, f"not needed: {clause}: {found}"


@pytest.mark.parametrize("clause", ONE_OF_TWO)
def test_either_of_two_is_enough(clause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, scenario = ONE_OF_TWO[clause]
    _without(monkeypatch, change)
    found = explore(scenario)
    assert found.whole and found.breach is None, str(found)
