"""Laws of forecasts: they agree with the cost model on the very steps, and what harms is told from what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import cost, instance, with_load

from penstock.policy.cost import StepShape
from penstock.policy.forecast import (
    NOTHING,
    Given,
    Pace,
    decode_s,
    harmless_chunk,
    lag,
    next_token_s,
    pace,
    prefill_s,
    queue_s_of,
)
from penstock.policy.state import LoadView

COST = cost()
COUNTS = st.integers(0, 2000)


@given(st.integers(1, 3000), COUNTS, st.integers(1, 512), st.integers(0, 20), st.integers(0, 5000))
def test_a_prompt_takes_the_steps_of_its_chunks(tokens, prefix, chunk, decoding, contexts):
    """To the digit where nothing is ahead: the work of chunks adds up to that of the whole."""
    contexts = contexts if decoding else 0
    load = LoadView(decoding=decoding, decode_tokens=contexts)
    seconds, at = 0.0, 0
    while at < tokens:
        step = min(chunk, tokens - at)
        shape = StepShape.of([(step, prefix + at)]) + StepShape(decodes=decoding, context_tokens=contexts)
        seconds += COST.step.predict(shape)
        at += step
    assert abs(prefill_s(load, 0, tokens, prefix, chunk, COST) - seconds) < 1e-9


def test_what_is_ahead_and_what_decodes_makes_it_later():
    idle, busy = LoadView(), LoadView(decoding=8, decode_tokens=800)
    alone = prefill_s(idle, 0, 100, 0, 512, COST)
    assert prefill_s(idle, 1000, 100, 0, 512, COST) > alone
    assert prefill_s(busy, 0, 100, 0, 512, COST) > alone


def test_what_was_given_counts_as_decoding():
    load = LoadView(decoding=1, decode_tokens=100, block_size=16)
    assert decode_s(load, Given(3, 0, 12), 50, COST) == COST.step.predict(
        StepShape(decodes=5, context_tokens=100 + 12 * 16 + 50)
    )


def test_the_next_token_comes_as_late_as_steps_lately_came():
    running = StepShape(decodes=4, context_tokens=400)
    expected = decode_s(LoadView(decoding=4, decode_tokens=400), NOTHING, 50, COST)
    for times in (0.5, 1.0, 3.0):
        step_s = times * COST.step.predict(running)
        load = LoadView(decoding=4, decode_tokens=400, step_s=step_s)
        assert next_token_s(load, NOTHING, 50, COST) == pytest.approx(max(1.0, times) * expected)
        assert next_token_s(load, NOTHING, 50, None) == step_s
    idle = LoadView(step_s=9.0)
    assert next_token_s(idle, NOTHING, 50, COST) == decode_s(idle, NOTHING, 50, COST)
    assert next_token_s(idle, NOTHING, 50, None) == 0.0


def test_a_chunk_is_harmless_if_the_step_with_it_meets_the_target():
    load = LoadView(prefill_tokens=512, decoding=2, decode_tokens=200, block_size=16)
    chunk = harmless_chunk(load, NOTHING, 0.02, COST)
    running = StepShape(decodes=2, context_tokens=200)
    assert COST.step.predict(running + StepShape.of([(chunk, 0)])) <= 0.02
    assert COST.step.predict(running + StepShape.of([(chunk + 1, 0)])) > 0.02
    assert harmless_chunk(load, NOTHING, 0.0, COST) == 0
    assert harmless_chunk(LoadView(prefill_tokens=512), NOTHING, 0.0, COST) == 512


def test_the_pace_is_of_those_that_only_prefill_if_there_are_any():
    mixed = instance("a")
    only = with_load(instance("p"), decode_slots=0)
    assert pace([], {}, COST) == Pace()
    rate = 512 / prefill_s(only.load, 0, 512, 0, 512, COST)
    assert pace([mixed, only], {}, COST) == Pace(0.0, rate, rate)
    assert pace([mixed, mixed], {}, COST).tokens_per_s == 2 * rate
    queued = with_load(only, queued_tokens=1024)
    assert pace([queued], {only.key: Given(1, 512, 0)}, None) == Pace(3 * 0.01, 51200.0, 51200.0)


def test_where_all_takes_longer_that_is_learnt_and_expected():
    slow = 1.0
    for _ in range(60):
        slow = lag(slow, 0.1, 0.3)
    assert 2.7 < slow < 3.3
    assert lag(slow, 0.001, 9.0) == slow, "too short to tell"
    assert lag(1.0, 0.1, 1e9) == lag(1.0, 0.1, 2.0), "one that hung does not stand for all"
    only = with_load(instance("p"), decode_slots=0, queued_tokens=512)
    ideal, real = pace([only], {}, COST), pace([only], {}, COST, slow)
    assert real.queue_s == slow * ideal.queue_s and real.tokens_per_s == ideal.tokens_per_s / slow


@given(st.lists(st.floats(0.5, 4.5), min_size=20, max_size=20))
def test_nine_of_ten_stay_below_what_is_expected(ratios):
    """Whatever the spread: seen again and again, no more than one in ten is above, but for the steps."""
    slow, above = 1.0, 0
    for number in range(2000):
        ratio = ratios[number % len(ratios)]
        above += ratio > slow and number >= 1000
        slow = lag(slow, 1.0, ratio)
    assert above <= 0.15 * 1000


def test_without_prompts_nothing_is_queued():
    assert queue_s_of(LoadView(prefill_tokens=512), NOTHING, COST) == 0.0
    assert queue_s_of(LoadView(queued_tokens=10), NOTHING, COST) == 0.0, "it prefills nothing"
