"""Laws 2 and 3 under every order of events: the shipped machines, explored."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from explorer import instance
from explorer.scenario import Scenario
from explorer.scenarios import LIMIT, QUICK, SLOW, SPLIT, STAGED
from explorer.search import Found, explore

from penstock.handover.effects import NeedDestination
from penstock.handover.session import Session

SLOW_STATES = 5_000_000
LEAST = 1_000
"""An exploration that sees fewer states shows little."""


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_every_token_comes_once_and_every_block_goes_home(
    scenario: Scenario, tell: Callable[[Found], None]
) -> None:
    found = explore(scenario)
    tell(found)
    assert found.whole and found.breach is None, str(found)
    assert found.states >= LEAST


def test_a_hung_writer_keeps_its_blocks_from_others_unless_somebody_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instance._Run, "_condemn", lambda self, effect: None)
    shape = replace(STAGED, one_sided=True)
    found = explore(Scenario("no controller", shape, {"hang": 1}))
    assert found.breach is not None and found.breach.startswith("no way out")


def test_a_session_that_is_left_where_nothing_decodes_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Session._asked

    def asked(self: Session, *message) -> tuple[Session, list]:
        session, effects = shipped(self, *message)
        return session, [effect for effect in effects if not isinstance(effect, NeedDestination)]

    monkeypatch.setattr(Session, "_asked", asked)
    found = explore(Scenario("stranded", SPLIT, {"lose": 1}))
    assert found.breach is not None and found.breach.startswith("no way out")


def _explore_some(scenario: Scenario) -> Found:
    return explore(scenario, LIMIT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_million_states_keep_the_laws(tell: Callable[[Found], None]) -> None:
    states = 0
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for found in pool.map(_explore_some, SLOW):
            tell(found)
            assert found.breach is None, str(found)
            states += found.states
    assert states >= SLOW_STATES
