"""Laws 2 and 3 under every order of events: the shipped machines, explored."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from explorer import instance
from explorer.scenarios import LIMIT, QUICK, SLOW, STAGED
from explorer.search import Found, explore
from explorer.world import Scenario

QUICK_STATES, SLOW_STATES = 300_000, 5_000_000

_seen: dict[str, Found] = {}


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[Found], None]:
    """Writes what an exploration saw to the terminal, where there is one."""
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    return lambda found: reporter.write_line(f"\n{found}") if reporter else None


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_every_token_comes_once_and_every_block_goes_home(
    scenario: Scenario, tell: Callable[[Found], None]
) -> None:
    found = _seen[scenario.name] = explore(scenario)
    tell(found)
    assert found.whole and found.breach is None, str(found)


def test_the_exploration_is_large() -> None:
    if len(_seen) < len(QUICK):
        pytest.skip("only where every scenario was explored by this process")
    assert sum(found.states for found in _seen.values()) >= QUICK_STATES


def test_a_hung_writer_keeps_its_blocks_from_others_unless_somebody_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instance._Run, "_condemn", lambda self, effect: None)
    shape = instance.replace(STAGED, one_sided=True)
    found = explore(Scenario("no controller", shape, {"hang": 1}))
    assert found.breach is not None and found.breach.startswith("no way out")


def _explore_some(scenario: Scenario) -> Found:
    return explore(scenario, LIMIT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_million_states_keep_the_laws(tell: Callable[[Found], None]) -> None:
    states = 0
    with ProcessPoolExecutor(2, mp_context=get_context("fork"), max_tasks_per_child=None) as pool:
        for found in pool.map(_explore_some, SLOW):
            tell(found)
            assert found.breach is None, str(found)
            states += found.states
    assert states >= SLOW_STATES
