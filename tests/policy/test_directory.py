"""Laws of the directory: it never believes in a prefix with a gap, and what it forgets are the leaves used least."""

import os

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.directory import PrefixDirectory
from penstock.policy.prefix import chain, secret

A, B = ("a", 1), ("b", 1)
KEY = secret("model", "tenant")


def names(*tokens):
    return chain(KEY, tokens, 1)


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def test_the_longest_prefix_that_was_sent_is_found():
    known = PrefixDirectory()
    known.note(A, names(1, 2, 3), 10)
    known.note(B, names(1, 5), 10)
    assert known.blocks(names(1, 2, 9, 9)) == {A: 2, B: 1}
    assert known.blocks(names(2, 3)) == {}


def test_what_was_used_least_goes_first_and_leaves_before_what_they_grow_from():
    known = PrefixDirectory()
    known.note(A, names(1, 2, 3), 5)
    known.note(A, names(7, 8, 9), 5)
    assert known.blocks(names(1, 2, 3)) == {A: 2}
    assert known.blocks(names(7, 8, 9)) == {A: 3}
    known.note(A, names(1, 2), 5)
    known.note(A, names(4, 5), 5)
    assert known.blocks(names(1, 2, 3)) == {A: 2} and known.blocks(names(7, 8, 9)) == {A: 1}


@given(st.lists(PROMPTS, max_size=12), PROMPTS, st.integers(1, 8))
def test_it_believes_no_more_than_was_sent_nor_than_can_be_held(prompts, asked, most):
    known = PrefixDirectory()
    for prompt in prompts:
        known.note(A, names(*prompt), most)
    found = known.blocks(names(*asked)).get(A, 0)
    sent = max((shared(prompt, asked) for prompt in prompts), default=0)
    assert found <= min(sent, most)
    if prompts and most >= sum(map(len, prompts)):
        assert found == sent


def shared(one, other):
    """How many leading tokens are the same."""
    return len(os.path.commonprefix([one, other]))


def test_an_instance_that_is_gone_is_forgotten():
    known = PrefixDirectory()
    known.note(A, names(1), 5)
    known.note(B, names(1), 5)
    known.keep({B})
    assert known.blocks(names(1)) == {B: 1}
