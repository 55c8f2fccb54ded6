"""Batching: one step's budget, in order of arrival, and how large it may be."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.batching import (
    Budget,
    Candidate,
    Target,
    bounded,
    choose_batch,
    prefill_budget,
    saturation_tokens,
)
from penstock.policy.cost import Law, Piece, StepCost, StepShape

CANDIDATES = st.lists(
    st.one_of(
        st.builds(Candidate, st.just(1), st.just(True), st.integers(1, 9000)),
        st.builds(Candidate, st.integers(1, 300), st.just(False), st.sampled_from((0, 0, 5, 700))),
    )
)
BUDGETS = st.builds(Budget, st.integers(0, 512), st.integers(0, 8))
PIECES = st.builds(
    Piece,
    base_s=st.floats(1e-4, 0.05),
    per_token_s=st.floats(1e-6, 1e-3),
    per_chunk_work_s=st.sampled_from((0.0, 1e-10, 1e-8, 1e-6)),
    per_context_token_s=st.floats(0, 1e-6),
)
LAWS = st.builds(Law, split_tokens=st.integers(1, 600), below=PIECES, above=PIECES)
COSTS = st.builds(StepCost, prefill=LAWS, decode=LAWS)
MOST = 1024


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
def test_who_was_begun_runs_first_then_who_came_first(candidates, budget):
    batch = dict(choose_batch(candidates, budget))
    order = sorted(range(len(candidates)), key=lambda place: candidates[place].computed_tokens == 0)
    for decoding in (True, False):
        places = range(len(candidates)) if decoding else order
        kind = [place for place in places if candidates[place].decoding is decoding]
        served = [batch.get(place, 0) == candidates[place].pending_tokens for place in kind]
        touched = [place in batch for place in kind]
        assert touched == sorted(touched, reverse=True)
        assert served == sorted(served, reverse=True), "only the last is cut"


@given(COSTS, st.lists(st.integers(1, 9000), max_size=8), st.floats(1e-4, 0.5), st.integers(0, 9000))
def test_the_prefill_budget_is_the_largest_that_meets_the_target(cost, contexts, target_s, prefix):
    running = StepShape.of(contexts=contexts)
    budget = prefill_budget(cost, running, target_s, MOST, prefix)
    seconds = [cost.predict(running + StepShape.of([(chunk, prefix)])) for chunk in range(1, MOST + 1)]

    def largest(bound_s: float) -> int:
        return max((chunk for chunk, taken in enumerate(seconds, start=1) if taken <= bound_s), default=0)

    assert largest(target_s * (1 - 1e-9)) <= budget <= largest(target_s * (1 + 1e-9))


@given(CANDIDATES, BUDGETS, COSTS, st.floats(1e-3, 0.5))
def test_a_bounded_batch_that_fills_its_budget_meets_the_target(candidates, budget, cost, target_s):
    cut = bounded(candidates, budget, Target(cost, target_s))
    batch = choose_batch(candidates, cut)
    chunks = [(n, candidates[i].computed_tokens) for i, n in batch if not candidates[i].decoding]
    contexts = [candidates[i].computed_tokens for i, _ in batch if candidates[i].decoding]
    assert cut.decode_slots == budget.decode_slots and cut.prefill_tokens <= budget.prefill_tokens
    if not contexts or not any(not candidate.decoding for candidate in candidates):
        assert cut == budget
    elif chunks and sum(n for n, _ in chunks) == cut.prefill_tokens:
        assert cost.predict(StepShape.of(chunks, contexts)) <= target_s * (1 + 1e-9)


@given(CANDIDATES, BUDGETS, COSTS)
def test_prompts_go_on_where_no_chunk_meets_the_target(candidates, budget, cost):
    cut = bounded(candidates, budget, Target(cost, 1e-12), least_tokens=16)
    assert cut.prefill_tokens >= min(16, budget.prefill_tokens)


@given(COSTS, st.sampled_from((0.01, 0.05, 0.2)))
def test_from_the_saturation_length_on_throughput_hardly_grows(cost, gain):
    def throughput(n: int) -> float:
        return n / cost.predict(StepShape.of([(n, 0)]))

    length = saturation_tokens(cost, gain, MOST)
    best = max(throughput(n) for n in range(1, MOST + 1))
    assert throughput(length) * (1 + gain) >= best * (1 - 1e-9)
    assert all(throughput(n) * (1 + gain) < best * (1 + 1e-9) for n in range(1, length))


def test_the_saturation_length_by_hand():
    """Without attention, n / (a + b n) reaches 1 / (1 + gain) of its value at the most tokens."""
    piece = Piece(base_s=0.01, per_token_s=1e-4, per_chunk_work_s=0.0, per_context_token_s=0.0)
    law = Law(split_tokens=1, below=piece, above=piece)
    # n / (100 + n) >= (10000 / 10100) / 1.05, which is n >= 1652.9
    assert saturation_tokens(StepCost(prefill=law, decode=law), 0.05, 10000) == 1653
