"""One sequence: which tokens have KV, when it ends, and what a handover makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.sequence import Sequence
from penstock.handover.values import Commit, Context, End, Epoch, LeaseKey, SamplingParams, TokenRecord

EOS = frozenset({7})


def begin(prompt=4, emitted=(), max_tokens=8, longest=100, **params) -> Sequence:
    context = Context(
        tuple(range(10, 10 + prompt)), tuple(emitted), SamplingParams(max_tokens=max_tokens, **params)
    )
    return Sequence.begin("s", Epoch(1, 1), context, longest)


def test_it_ends_with_its_last_token_and_not_before():
    sequence = begin(max_tokens=3)
    ends = [sequence.append(50, EOS).end for _ in range(3)]
    assert ends == [None, None, End.LENGTH]


def test_one_token_may_be_all():
    assert begin(max_tokens=1).append(50, EOS).end is End.LENGTH


def test_the_context_ends_it_where_the_request_does_not():
    sequence = begin(prompt=9, max_tokens=50, longest=11)
    assert sequence.append(50, EOS).end is None
    assert sequence.append(50, EOS).end is End.LENGTH


def test_an_end_token_ends_it_unless_it_is_to_be_ignored():
    assert begin().append(7, EOS).end is End.STOP
    assert begin(ignore_eos=True).append(7, EOS).end is None


def test_output_so_far_counts_as_output_and_is_prefilled_again():
    sequence = begin(prompt=4, emitted=(50, 51), max_tokens=3)
    assert not sequence.decoding and sequence.pending == 6
    assert sequence.sample_spec().position == 2
    assert sequence.append(52, EOS).end is End.LENGTH


@given(
    prompt=st.integers(1, 20),
    emitted=st.integers(1, 20),
    seen=st.integers(0, 20),
    reserved=st.integers(0, 20),
    max_tokens=st.integers(1, 60),
)
def test_a_handover_changes_nothing_of_a_sequence(prompt, emitted, seen, reserved, max_tokens):
    reserved = min(reserved, emitted)
    first = min(seen, reserved)
    made = tuple(range(100, 100 + emitted))
    left = begin(prompt, made, max_tokens + emitted)
    left.computed = prompt + emitted - 1
    records = tuple(TokenRecord(token) for token in made[first:])
    told = Context(tuple(left.tokens[:prompt]), made[:reserved], left.params)
    here = Sequence.adopt(LeaseKey("s", Epoch(1, 2)), told, Commit(first, records, left.computed), 100, [])
    assert (here.tokens, here.computed, here.most) == (left.tokens, left.computed, left.most)
    assert here.sample_spec() == left.sample_spec()
    assert here.decoding and here.pending == 1


def test_a_commit_that_leaves_a_gap_is_never_adopted():
    told = Context((1, 2), (50,), SamplingParams(max_tokens=9))
    with pytest.raises(AssertionError):
        Sequence.adopt(LeaseKey("s", Epoch(1, 2)), told, Commit(3, (TokenRecord(53),), 5), 100, [])
