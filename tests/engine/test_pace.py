"""Copies have no more than their share of the time while steps run, and all of it while none does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.pace import Pace

FOREVER = 1e9


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def copied(pace: Pace, clock: Clock, duration_s: float) -> None:
    """A message that waited for its time."""
    clock.now += pace.left_s
    clock.now += duration_s
    pace.took(duration_s)


@given(st.floats(0.05, 1.0), st.lists(st.floats(1e-4, 2.0), min_size=1), st.lists(st.floats(0.0, 1.0)))
def test_copies_and_their_rests_keep_the_share(share, durations, pauses):
    clock = Clock()
    pace = Pace(share, FOREVER, lambda: True, clock)
    begun, waited = clock.now, iter(pauses)
    for duration_s in durations:
        copied(pace, clock, duration_s)
        clock.now += next(waited, 0.0)  # nothing was to be copied for a while
    clock.now += pace.left_s
    assert sum(durations) <= share * (clock.now - begun) * (1 + 1e-6)


def test_what_overtakes_a_rest_makes_it_longer():
    clock = Clock()
    pace = Pace(0.25, FOREVER, lambda: True, clock)
    for _ in range(3):
        clock.now += 0.1
        pace.took(0.1)
    assert pace.left_s == pytest.approx(3 * 0.3 - 0.2)


def test_nobody_rests_where_no_step_runs():
    clock, stepping = Clock(), True
    pace = Pace(0.5, FOREVER, lambda: stepping, clock)
    pace.took(1.0)
    assert pace.left_s == pytest.approx(1.0)
    stepping = False
    assert pace.left_s == 0.0
    pace.took(9.0)
    stepping = True
    assert pace.left_s == pytest.approx(1.0), "what was copied while nothing ran is not owed"


@given(st.lists(st.floats(0.0, 9.0), min_size=1), st.floats(0.1, 2.0))
def test_no_rest_is_longer_than_a_lease_allows(durations, most_s):
    pace = Pace(0.01, most_s, lambda: True, Clock())
    for duration_s in durations:
        pace.took(duration_s)
        assert 0 <= pace.left_s <= most_s * (1 + 1e-9)


def test_all_of_the_time_is_no_pace():
    pace = Pace(1.0, FOREVER, lambda: True, Clock())
    pace.took(5.0)
    assert pace.left_s == 0.0
