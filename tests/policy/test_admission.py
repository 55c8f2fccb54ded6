"""Admission: what is promised can always be kept."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.admission import Demand, admits, promise
from penstock.policy.state import blocks_for

SIZES = st.integers(1, 64)


@given(tokens=st.integers(1, 5000), most=st.integers(1, 5000), block=SIZES)
def test_a_promise_holds_the_sequence_at_its_longest(tokens, most, block):
    blocks = promise(Demand(tokens, most), block)
    assert blocks * block >= max(tokens, most) > (blocks - 1) * block


@given(st.lists(st.integers(1, 50)), st.integers(1, 200))
def test_promises_never_exceed_memory(asked, total):
    promised = 0
    for needed in asked:
        if admits(needed, promised, total):
            promised += needed
    assert promised <= total


@given(st.integers(1, 200))
def test_all_of_memory_can_be_promised(total):
    assert admits(total, 0, total) and not admits(1, total, total)


@given(tokens=st.integers(0, 5000), block=SIZES)
def test_a_block_border_needs_no_further_block(tokens, block):
    assert blocks_for(tokens * block, block) == tokens
    assert blocks_for(tokens * block + 1, block) == tokens + 1
