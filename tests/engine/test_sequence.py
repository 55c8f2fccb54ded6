"""One sequence: which tokens have KV, when it ends, and what a handover makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.sequence import Sequence
from penstock.handover.values import (
    Commit,
    Context,
    End,
    Epoch,
    LeaseKey,
    Logprobs,
    SamplingParams,
    TokenRecord,
)

EOS = frozenset({7})


def begin(prompt=4, emitted=(), max_tokens=8, longest=100, **params) -> Sequence:
    context = Context(
        tuple(range(10, 10 + prompt)), tuple(emitted), SamplingParams(max_tokens=max_tokens, **params)
    )
    return Sequence.begin("s", Epoch(1, 1), context, longest, EOS)


def test_it_ends_with_its_last_token_and_not_before():
    sequence = begin(max_tokens=3)
    ends = [sequence.append(50).end for _ in range(3)]
    assert ends == [None, None, End.LENGTH]


def test_one_token_may_be_all():
    assert begin(max_tokens=1).append(50).end is End.LENGTH


def test_the_context_ends_it_where_the_request_does_not():
    sequence = begin(prompt=9, max_tokens=50, longest=11)
    assert sequence.append(50).end is None
    assert sequence.append(50).end is End.LENGTH


def test_an_end_token_ends_it_unless_it_is_to_be_ignored():
    assert begin().append(7).end is End.STOP
    assert begin(ignore_eos=True).append(7).end is None


def test_output_so_far_counts_as_output_and_is_prefilled_again():
    sequence = begin(prompt=4, emitted=(50, 51), max_tokens=3)
    assert not sequence.decoding and sequence.pending == 6
    assert sequence.sample_spec().position == 2
    assert sequence.append(52).end is End.LENGTH


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
    here = Sequence.adopt(LeaseKey("s", Epoch(1, 2)), told, Commit(first, records, left.computed), 100)
    assert (here.tokens, here.computed, here.most) == (left.tokens, left.computed, left.most)
    assert here.sample_spec() == left.sample_spec()
    assert here.decoding and here.pending == 1


def test_a_commit_that_leaves_a_gap_is_never_adopted():
    told = Context((1, 2), (50,), SamplingParams(max_tokens=9))
    with pytest.raises(AssertionError):
        Sequence.adopt(LeaseKey("s", Epoch(1, 2)), told, Commit(3, (TokenRecord(53),), 5), 100)


def test_no_token_ends_it_before_its_least():
    sequence = begin(max_tokens=9, min_tokens=2, stop_token_ids=(50,))
    assert set(sequence.sample_spec().shaping.barred) == {7, 50}
    sequence.append(1)
    assert sequence.sample_spec().shaping is not None
    sequence.append(2)
    assert sequence.sample_spec().shaping is None
    assert sequence.append(50).end is End.STOP


def test_what_changes_nothing_costs_nothing():
    assert begin(temperature=0.7, seed=3).sample_spec().shaping is None
    assert begin(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1).sample_spec().shaping is None
    assert begin().logbook(0, 4) is None


def scored(token: int) -> Logprobs:
    return Logprobs(-float(token))


def run(sequence: Sequence, chunk: int) -> list[TokenRecord]:
    """Prefill in chunks, telling of every known token what is to be told, then draw two tokens."""
    records = []
    while len(records) < 2:
        tokens = min(chunk, sequence.pending)
        log = sequence.logbook(sequence.computed, tokens)
        if log is not None:
            log.of_known = tuple(map(scored, log.known))
            log.of_drawn = None if log.drawn_top is None else scored(1000)
        sequence.log(sequence.computed, log)
        sequence.computed += tokens
        if not sequence.pending:
            records.append(sequence.append(50 + len(records), log and log.of_drawn))
    return records


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("drawn", [None, 0])
def test_the_prompt_is_told_of_with_the_first_token_however_it_was_cut(chunk, drawn):
    sequence = begin(prompt=4, prompt_logprobs=1, logprobs=drawn)
    assert sequence.needs_whole_prompt
    first, second = run(sequence, chunk)
    assert first.prompt == tuple(map(scored, (11, 12, 13))) and second.prompt == ()
    assert first.logprobs == second.logprobs == (None if drawn is None else scored(1000))
    assert not sequence.needs_whole_prompt


def test_a_prefill_that_begins_anew_tells_of_each_token_once():
    sequence = begin(prompt=4, prompt_logprobs=0)
    for tokens in (3, 2):  # preempted after each, and then from the beginning again
        log = sequence.logbook(0, tokens)
        log.of_known = tuple(map(scored, log.known))
        sequence.log(0, log)
    assert run(sequence, 100)[0].prompt == tuple(map(scored, (11, 12, 13)))


def test_a_prompt_is_told_of_once_over_recovery():
    sequence = begin(prompt=4, emitted=(50,), prompt_logprobs=1)
    assert not sequence.needs_whole_prompt
    assert run(sequence, 2)[0].prompt == ()
