"""The fit finds the law that made the samples, and its error is told by samples that it never saw."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster.fit import (
    CopySample,
    StepSample,
    copy_errors,
    fit_link,
    fit_steps,
    held_out,
    step_errors,
)
from penstock.policy.cost import Law, LinkCost, Piece, StepCost, StepShape

PIECES = st.builds(
    Piece,
    base_s=st.floats(1e-3, 2e-2),
    per_token_s=st.floats(1e-5, 1e-3),
    per_chunk_work_s=st.floats(1e-9, 1e-7),
    per_context_token_s=st.floats(1e-7, 1e-5),
)


def shapes(seed: int, count: int = 60) -> list[StepShape]:
    """As many steps with a prompt, alone or beside decodes, as without."""
    draw = random.Random(seed)

    def contexts(least: int) -> list[int]:
        return [draw.randint(1, 2000) for _ in range(draw.randint(least, 64))]

    def chunk() -> tuple[int, int]:
        return int(2 ** draw.uniform(1, 10)), draw.choice((0, draw.randint(1, 4000)))

    prompts = [StepShape.of([chunk()], contexts(0) if draw.random() < 0.5 else ()) for _ in range(count)]
    return prompts + [StepShape.of(contexts=contexts(1)) for _ in range(count)]


def measured(cost: StepCost, seed: int, noise: float = 0.0) -> list[StepSample]:
    draw = random.Random(seed)
    return [
        StepSample(shape, cost.predict(shape) * draw.uniform(1 - noise, 1 + noise)) for shape in shapes(seed)
    ]


@settings(max_examples=10, deadline=None)
@given(PIECES, PIECES, st.integers(0, 1000))
def test_a_law_of_one_piece_is_found_exactly(prefill, decode, seed):
    true = StepCost(
        prefill=Law(split_tokens=1, below=prefill, above=prefill),
        decode=Law(split_tokens=1, below=decode, above=decode),
    )
    cost = fit_steps(measured(true, seed))
    unseen = measured(true, seed + 1)
    assert step_errors(cost, unseen).max() < 1e-6


@settings(max_examples=5, deadline=None)
@given(PIECES, PIECES, st.integers(0, 1000))
def test_noise_costs_about_as_much_error_as_it_has(prefill, decode, seed):
    true = StepCost(
        prefill=Law(split_tokens=1, below=prefill, above=prefill),
        decode=Law(split_tokens=1, below=decode, above=decode),
    )
    cost = fit_steps(measured(true, seed, noise=0.1))
    assert np.median(step_errors(cost, measured(true, seed + 1))) < 0.1


def test_a_jump_is_found_where_it_is():
    low = Piece(base_s=0.002, per_token_s=1e-5, per_chunk_work_s=0, per_context_token_s=1e-7)
    high = Piece(base_s=0.001, per_token_s=8e-4, per_chunk_work_s=0, per_context_token_s=1e-7)
    law = Law(split_tokens=32, below=low, above=high)
    true = StepCost(prefill=law, decode=law)
    cost = fit_steps(measured(true, seed=1))
    assert abs(cost.decode.split_tokens - 32) <= 4
    one_piece = StepCost(
        prefill=law, decode=Law(split_tokens=1, below=cost.decode.above, above=cost.decode.above)
    )
    unseen = [sample for sample in measured(true, seed=2) if not sample.shape.chunk_tokens]
    assert np.mean(step_errors(cost, unseen)) < np.mean(step_errors(one_piece, unseen)) / 3


def test_no_coefficient_is_below_zero_even_where_the_data_ask_for_one():
    samples = [
        StepSample(shape, 0.02 - 1e-7 * shape.context_tokens + 1e-5 * shape.tokens)
        for shape in shapes(3)
        if shape.context_tokens < 100_000
    ]
    cost = fit_steps(samples)
    for piece in (cost.prefill.below, cost.prefill.above, cost.decode.below, cost.decode.above):
        assert piece.per_context_token_s == 0
        assert min(piece.base_s, piece.per_token_s, piece.per_chunk_work_s) >= 0


def test_too_few_samples_are_refused_by_kind():
    decodes = [StepSample(StepShape.of(contexts=[10]), 0.01)] * 20
    with pytest.raises(ValueError, match="0 steps with prompt tokens"):
        fit_steps(decodes)


@settings(deadline=None)
@given(st.floats(0, 1e-3), st.floats(1e6, 1e12))
def test_a_link_is_found_exactly(latency_s, bandwidth):
    true = LinkCost(latency_s=latency_s, bandwidth_bytes_per_s=bandwidth)
    sizes = [1 << n for n in range(10, 28)]
    samples = [CopySample(size, true.predict(size)) for size in sizes]
    found = fit_link(samples)
    assert found.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-4)
    assert copy_errors(found, samples).max() < 1e-4


@pytest.mark.parametrize(
    "samples", [[], [CopySample(4096, 1e-3)] * 9, [CopySample(4096, 1e-3), CopySample(8192, 1e-4)]]
)
def test_a_link_that_cannot_be_told_is_refused(samples):
    with pytest.raises(ValueError):
        fit_link(samples)


@settings(deadline=None)
@given(st.integers(3, 200), st.integers(2, 5), st.integers(0, 99))
def test_what_is_held_out_is_not_fitted(count, every, seed):
    fitted, held = held_out(range(count), every, seed)
    assert sorted([*fitted, *held]) == list(range(count))
    assert len(held) == count // every
