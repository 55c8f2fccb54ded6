"""Admission: each rule needs what it says, and memory that suffices for the predicted peak suffices all the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.admission import (
    RULES,
    Need,
    admits,
    aggressive,
    conservative,
    ever_fits,
    expected_length,
    predicted,
    share_of,
)
from penstock.policy.state import blocks_for

SIZES = st.integers(1, 64)


@st.composite
def any_need(draw):
    held, remaining, more = draw(st.integers(1, 400)), draw(st.integers(0, 200)), draw(st.integers(0, 200))
    return Need(held, remaining, held + remaining + more)


NEEDS = st.lists(any_need(), max_size=12)


@given(any_need(), st.integers(1, 300))
def test_what_is_bounded_needs_no_more_than_its_bound_and_no_more_than_before(need, bound):
    inside = need.within(bound)
    assert inside.held == min(need.held, bound) and inside.most == min(need.most, bound)
    assert inside.held + inside.remaining == min(need.held + need.remaining, bound)
    assert need.within(need.most) == need


def simulated_peak(needs: list[Need], block: int) -> int:
    """All grow by a token a step, each until its remainder is made."""
    peak = 0
    for step in range(max((need.remaining for need in needs), default=-1) + 1):
        running = [need for need in needs if need.remaining >= step]
        peak = max(peak, sum(blocks_for(need.held + step, block) for need in running))
    return peak


@given(NEEDS, SIZES)
def test_what_is_predicted_suffices_if_all_goes_as_expected_and_is_hardly_more(needs, block):
    assert (
        simulated_peak(needs, block) <= predicted(needs, block) <= simulated_peak(needs, block) + len(needs)
    )


@given(NEEDS, SIZES)
def test_rules_go_from_bold_to_timid(needs, block):
    assert aggressive(needs, block) <= predicted(needs, block) <= conservative(needs, block)


@given(NEEDS, SIZES)
def test_the_order_of_needs_does_not_matter(needs, block):
    for rule in RULES.values():
        assert rule(needs, block) == rule(needs[::-1], block)


@pytest.mark.parametrize("rule", RULES)
@given(needs=NEEDS, entering=any_need(), block=SIZES, total=st.integers(1, 300))
def test_who_enters_fits_now_and_alone(rule, needs, entering, block, total):
    inside: list[Need] = []
    for need in [*needs, entering]:
        if admits(rule, inside, need, block, total) and ever_fits(need, block, total):
            inside.append(need)
    assert aggressive(inside, block) <= total
    if rule == "conservative":
        assert conservative(inside, block) <= total


@given(any_need(), SIZES)
def test_one_alone_has_all_of_memory(need, block):
    enough = blocks_for(need.most, block)
    for rule in RULES:
        assert admits(rule, [], need, block, enough) and not admits(rule, [], need, block, enough - 1)


@given(st.lists(st.integers(1, 50), max_size=30).map(sorted), st.integers(0, 60), st.floats(0, 0.999))
def test_a_length_is_expected_that_was_seen_and_is_longer_than_what_is_made(lengths, made, share):
    found = expected_length(lengths, made, share)
    longer = [length for length in lengths if length > made]
    assert (found in longer) if longer else found is None
    if longer:
        assert expected_length(lengths, made, 0.0) == longer[0]


def test_shares_are_spread_and_differ_by_seed_and_do_not_flicker():
    shares = [share_of(1, f"s{number}") for number in range(2000)]
    assert all(0 <= share < 1 for share in shares)
    assert abs(sum(shares) / len(shares) - 0.5) < 0.03
    assert shares == [share_of(1, f"s{number}") for number in range(2000)]
    assert shares != [share_of(2, f"s{number}") for number in range(2000)]


@given(tokens=st.integers(0, 5000), block=SIZES)
def test_a_block_border_needs_no_further_block(tokens, block):
    assert blocks_for(tokens * block, block) == tokens
    assert blocks_for(tokens * block + 1, block) == tokens + 1
