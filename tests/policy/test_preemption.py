"""Copying or computing again: whichever the prices say is cheaper."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.cost import CostModel, Law, LinkCost, Piece, StepCost
from penstock.policy.preemption import fetches, swaps_out


def cost(per_token_s: float, per_work_s: float, bandwidth: float) -> CostModel:
    piece = Piece(base_s=0.001, per_token_s=per_token_s, per_chunk_work_s=per_work_s, per_context_token_s=0.0)
    law = Law(split_tokens=10**6, below=piece, above=piece)
    link = LinkCost(latency_s=0.0005, bandwidth_bytes_per_s=bandwidth)
    return CostModel(
        step=StepCost(prefill=law, decode=law),
        kv_bytes_per_token=1000,
        capacity_tokens=10**6,
        links={"host": link},
    )


@given(st.integers(1, 10**5), st.integers(0, 10**5))
def test_without_prices_everything_is_copied(tokens, prefix):
    assert swaps_out(tokens, tokens, None) and fetches(tokens, prefix, None)


def test_nothing_is_copied_where_there_is_nothing():
    dear = cost(1.0, 0.0, 1e12)
    for prices in (None, dear):
        assert not swaps_out(0, 0, prices) and not fetches(0, 10, prices)


@given(st.integers(1, 10**5))
def test_a_slow_link_is_not_taken_and_a_fast_one_is(tokens):
    assert not swaps_out(tokens, tokens, cost(1e-6, 0.0, 1e4))
    assert not fetches(tokens, 0, cost(1e-6, 0.0, 1e4))
    assert swaps_out(tokens, tokens, cost(1e-2, 0.0, 1e12))


def test_what_is_there_already_tips_the_balance():
    prices = cost(1e-4, 0.0, 1000 / 1e-4 * 1.5)
    assert not swaps_out(1000, 1000, prices) and swaps_out(1000, 100, prices)


def test_behind_a_long_prefix_computing_is_dearer():
    prices = cost(1e-6, 1e-8, 1000 / 2e-5)
    assert not fetches(500, 0, prices) and fetches(500, 4000, prices)
