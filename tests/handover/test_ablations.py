"""Every rule and fence is needed: without any one of them there is a breach, a leak or an endless session."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
from explorer.scenario import Scenario
from explorer.scenarios import LONG, ONE_BLOCK, SHARED, STAGED, WINDOWED, early
from explorer.search import explore

from penstock.handover import rules
from penstock.handover.values import FOREVER, Epoch

IN_PLACE = replace(ONE_BLOCK, one_sided=True)
LONG_IN_PLACE = replace(LONG, one_sided=True)

ABLATIONS: dict[str, tuple[Callable, Scenario]] = {
    "settled_n": (
        lambda current, allotted: current + 1,
        Scenario(
            "settles at an epoch that was lent",
            LONG_IN_PLACE,
            **early("settle"),
            serving="A",
            picks_anew=False,
        ),
    ),
    "accepts": (
        lambda current, epoch: True,
        Scenario("believes the owners of old", ONE_BLOCK),
    ),
    "bound": (
        lambda current, closed: Epoch(current.attempt, FOREVER),
        Scenario("voids the whole attempt of an open session", ONE_BLOCK, {"lose": 1}),
    ),
    "restated_from": (
        lambda seen, made: made,
        Scenario("states only what is new", ONE_BLOCK),
    ),
    "may_forget": (
        lambda seen, made: True,
        Scenario("forgets what was not seen", ONE_BLOCK, recover_by_silence=False),
    ),
    "may_run_again": (
        lambda commit_may_have_left: True,
        Scenario("runs on after a commit", LONG_IN_PLACE, **early("settle"), serving="A", picks_anew=False),
    ),
    "fresh": (
        lambda mark, epoch: True,
        Scenario("begins an epoch twice", ONE_BLOCK, {"double": 1}),
    ),
    "takes": (
        lambda expired: True,
        Scenario("adopts under a lease that is over", IN_PLACE, **early("lease")),
    ),
    "complete": (
        lambda commit, end, have, arrived: commit is not None,
        Scenario("adopts on the header", STAGED),
    ),
    "copied_from": (
        lambda have: 0,
        Scenario("copies over what others read", replace(SHARED, one_sided=True)),
    ),
    "may_answer_stop": (
        lambda writing: True,
        Scenario("says that it has stopped while it writes", IN_PLACE, **early("lease")),
    ),
    "believes_seen": (
        lambda router, attempt, seen_router, seen_attempt: True,
        Scenario(
            "believes what another attempt has seen",
            replace(ONE_BLOCK, pool=1),
            {"cut": 1, "resume": 1, "lose": 1},
            handover=False,
            serving="A",
        ),
    ),
    "recovers_on_silence": (
        lambda: False,
        Scenario("waits for a start that was lost", ONE_BLOCK, {"lose": 1}),
    ),
    "drops_for_silent_router": (
        lambda: False,
        Scenario("keeps the sequence of a dead router", ONE_BLOCK, {"router": 1}),
    ),
    "may_release": (
        lambda one_sided, writer_fenced: True,
        Scenario("frees what a live writer may touch", IN_PLACE, **early("lease")),
    ),
    "may_free_read": (
        lambda writing: True,
        Scenario("frees what a transfer reads", ONE_BLOCK, {"cancel": 1}),
    ),
    "kept_from": (
        lambda firsts: None,
        Scenario("frees what a window has passed and a transfer is to read", WINDOWED),
    ),
    "may_free_stepped": (
        lambda launched: True,
        Scenario("frees what a step writes", ONE_BLOCK, {"cancel": 1}),
    ),
    "may_copy_last": (
        lambda launched: True,
        Scenario("copies what a step writes", ONE_BLOCK),
    ),
}
"""For each guard: what stands there when the rule is out, and where that shows."""


def test_every_guard_is_taken_out_once() -> None:
    helpers = {"unseen"}
    guards = {name for name, value in vars(rules).items() if inspect.isfunction(value)} - helpers
    assert guards == set(ABLATIONS)


@pytest.mark.parametrize("guard", ABLATIONS)
def test_without_it_a_law_breaks(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ablated, scenario = ABLATIONS[guard]
    shipped = inspect.signature(getattr(rules, guard)).parameters
    assert len(inspect.signature(ablated).parameters) == len(shipped)
    monkeypatch.setattr(rules, guard, ablated)
    found = explore(scenario, 150_000)
    assert found.breach is not None, f"{guard} is not needed: {found}"
