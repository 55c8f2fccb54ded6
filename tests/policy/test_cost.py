"""The cost model: what a step and a copy are priced at."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.policy.cost import CostModel, Law, LinkCost, Piece, StepCost, StepShape

CHUNKS = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 8192)), max_size=4)
CONTEXTS = st.lists(st.integers(1, 8192), max_size=8)
PIECE = Piece(base_s=0.004, per_token_s=2e-5, per_chunk_work_s=5e-10, per_context_token_s=2e-7)
SLOWER = Piece(base_s=0.02, per_token_s=3e-5, per_chunk_work_s=6e-10, per_context_token_s=3e-7)
COST = StepCost(
    prefill=Law(split_tokens=96, below=PIECE, above=SLOWER),
    decode=Law(split_tokens=8, below=PIECE, above=SLOWER),
)
MODEL = CostModel(
    step=COST,
    kv_bytes_per_token=1000,
    capacity_tokens=10,
    links={"host": LinkCost(latency_s=1e-3, bandwidth_bytes_per_s=1e6)},
)


@settings(deadline=None)
@given(CHUNKS, CONTEXTS)
def test_a_step_is_priced_by_the_formula_of_its_piece(chunks, contexts):
    n = sum(chunk for chunk, _ in chunks) + len(contexts)
    split = COST.prefill.split_tokens if chunks else COST.decode.split_tokens
    piece = PIECE if n < split else SLOWER
    expected = piece.base_s + piece.per_token_s * n
    expected += piece.per_chunk_work_s * sum(c * (c + 2 * p) for c, p in chunks)
    expected += piece.per_context_token_s * sum(contexts)
    priced = COST.predict(StepShape.of(chunks, contexts))
    assert priced == (pytest.approx(expected) if n else 0.0)


@settings(deadline=None)
@given(CHUNKS, CONTEXTS, CHUNKS, CONTEXTS)
def test_shapes_of_parts_add_up_to_the_shape_of_the_whole(chunks, contexts, more_chunks, more_contexts):
    parts = StepShape.of(chunks, contexts) + StepShape.of(more_chunks, more_contexts)
    assert parts == StepShape.of(chunks + more_chunks, contexts + more_contexts)


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(0, 4096))
def test_the_work_of_a_prompt_is_the_same_however_it_is_cut(first, second, prefix):
    whole = StepShape.of([(first + second, prefix)])
    cut = StepShape.of([(first, prefix)]) + StepShape.of([(second, prefix + first)])
    assert whole == cut


def test_copies_and_swaps_are_latency_plus_bytes_over_bandwidth():
    assert MODEL.copy_s("host", 5) == MODEL.swap_s(5) == pytest.approx(1e-3 + 5000 / 1e6)


def test_a_link_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no link 'nvlink'.*host"):
        MODEL.copy_s("nvlink", 1)


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize("name", ["base_s", "per_token_s", "per_chunk_work_s", "per_context_token_s"])
def test_a_coefficient_below_zero_or_no_number_is_refused(name, value):
    good = {"base_s": 1.0, "per_token_s": 0.0, "per_chunk_work_s": 0.0, "per_context_token_s": 0.0}
    Piece(**good)
    with pytest.raises(ValueError, match=name):
        Piece(**{**good, name: value})


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: LinkCost(latency_s=-1, bandwidth_bytes_per_s=1), "latency_s"),
        (lambda: LinkCost(latency_s=0, bandwidth_bytes_per_s=0), "bandwidth_bytes_per_s"),
        (lambda: Law(split_tokens=0, below=PIECE, above=PIECE), "split_tokens"),
        (lambda: CostModel(step=COST, kv_bytes_per_token=0, capacity_tokens=1), "kv_bytes_per_token"),
        (lambda: CostModel(step=COST, kv_bytes_per_token=1, capacity_tokens=-1), "capacity_tokens"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
