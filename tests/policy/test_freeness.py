"""Laws of freeness: what asks for memory lowers it, it may be negative, and what drains has none."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from worlds import BLOCK, TOTAL, instance, with_load

from penstock.policy.freeness import HEADROOM, freeness, usage_blocks
from penstock.policy.projection import joined, left
from penstock.policy.state import Priority, SequenceView

SEQUENCES = st.builds(
    SequenceView,
    session=st.uuids().map(str),
    tokens=st.integers(1, 2000),
    remaining=st.integers(0, 2000),
    priority=st.sampled_from(Priority),
)


def test_freeness_is_the_steps_until_memory_is_used_up():
    view = with_load(instance("a"), running=4, held_blocks=100)
    assert freeness(view) == (TOTAL - 100) * BLOCK / 4


def test_what_is_predicted_counts_and_not_what_is_free_now():
    view = with_load(instance("a"), running=4, held_blocks=100, peak_blocks=250)
    assert freeness(view) == -50 * BLOCK / 4
    assert freeness(with_load(view, peak_blocks=0)) > 0


def test_the_first_that_waits_counts_with_its_demand_and_high_priority_with_its_headroom():
    view = with_load(instance("a"), running=2, held_blocks=100)
    assert usage_blocks(with_load(view, head_blocks=30).load) == 130
    for running in (1, 2):  # they share one headroom
        assert usage_blocks(with_load(view, high_priority=running).load) == 100 + HEADROOM * TOTAL


def test_what_drains_or_is_dead_is_never_free():
    for changed in ({"draining": True}, {"alive": False}):
        assert freeness(replace(instance("a"), **changed)) == -math.inf


@given(st.lists(SEQUENCES, max_size=8), SEQUENCES)
def test_who_leaves_takes_along_just_what_it_brought(sequences, one):
    view = instance("a", sequences)
    assert left(joined(view, one), one) == view
    assert freeness(joined(view, one)) <= freeness(view) or freeness(view) < 0
