"""Batching: one step's budget, in order of arrival."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.batching import Budget, Candidate, choose_batch

CANDIDATES = st.lists(
    st.one_of(st.just(Candidate(1, True)), st.builds(Candidate, st.integers(1, 300), st.just(False)))
)
BUDGETS = st.builds(Budget, st.integers(0, 512), st.integers(0, 8))


@given(CANDIDATES, BUDGETS)
def test_a_step_keeps_to_its_budget(candidates, budget):
    batch = choose_batch(candidates, budget)
    decodes = [tokens for place, tokens in batch if candidates[place].decoding]
    chunks = [tokens for place, tokens in batch if not candidates[place].decoding]
    assert len(decodes) <= budget.decode_slots and all(tokens == 1 for tokens in decodes)
    assert sum(chunks) <= budget.prefill_tokens


@given(CANDIDATES, BUDGETS)
def test_each_runs_once_and_never_beyond_its_tokens(candidates, budget):
    batch = choose_batch(candidates, budget)
    places = [place for place, _ in batch]
    assert len(set(places)) == len(places)
    assert all(0 < tokens <= candidates[place].pending_tokens for place, tokens in batch)


@given(CANDIDATES, BUDGETS)
def test_nothing_is_idle_while_the_budget_lasts(candidates, budget):
    batch = dict(choose_batch(candidates, budget))
    decodes = sum(candidate.decoding for candidate in candidates)
    pending = sum(candidate.pending_tokens for candidate in candidates if not candidate.decoding)
    assert sum(candidates[place].decoding for place in batch) == min(decodes, budget.decode_slots)
    chunks = sum(tokens for place, tokens in batch.items() if not candidates[place].decoding)
    assert chunks == min(pending, budget.prefill_tokens)


@given(CANDIDATES, BUDGETS)
def test_who_came_first_runs_first(candidates, budget):
    batch = dict(choose_batch(candidates, budget))
    for decoding in (True, False):
        kind = [place for place, candidate in enumerate(candidates) if candidate.decoding is decoding]
        served = [batch.get(place, 0) == candidates[place].pending_tokens for place in kind]
        touched = [place in batch for place in kind]
        assert touched == sorted(touched, reverse=True)
        assert served == sorted(served, reverse=True), "only the last is cut"
