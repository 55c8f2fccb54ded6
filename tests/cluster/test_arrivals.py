"""Generators: rates, bursts and lengths are those asked for, and conversations grow turn by turn."""

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster.arrivals import (
    Conversation,
    Fixed,
    LogNormal,
    Pareto,
    Rate,
    arrivals,
    independent,
    sessions,
)
from penstock.cluster.workload import Workload, token_ids


def gaps(times: list[float]) -> list[float]:
    return [later - sooner for sooner, later in zip([0.0, *times], times, strict=False)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_a_gamma_process_has_its_rate_and_its_variation(cv):
    found = gaps(arrivals(Rate.steady(4.0), 20_000, seed=1, cv=cv))
    assert statistics.mean(found) == pytest.approx(0.25, rel=0.1)
    assert statistics.pstdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.1)


def test_a_cv_of_0_is_a_clock():
    assert arrivals(Rate.steady(2.0), 4, seed=1, cv=0) == pytest.approx([0.5, 1.0, 1.5, 2.0])


@settings(deadline=None)
@given(st.floats(0, 20), st.floats(0.1, 20), st.floats(1, 500))
def test_a_drift_has_the_expected_count_at_every_time(start, end, over_s):
    """With a clock for a process, the n-th arrival is where the integral of the rate is n."""
    times = arrivals(Rate.drift(start, end, over_s), 50, seed=0, cv=0)
    for number, time_s in enumerate(times, start=1):
        inside = min(time_s, over_s)
        integral = start * inside + (end - start) * inside**2 / (2 * over_s) + end * (time_s - inside)
        assert integral == pytest.approx(number, rel=1e-6, abs=1e-6)


def test_a_rate_of_several_points_is_level_before_and_after_them():
    times = arrivals(Rate(((10.0, 1.0), (20.0, 0.0), (30.0, 2.0))), 27, seed=0, cv=0)
    assert times[:10] == pytest.approx(range(1, 11))
    assert sum(10 < time_s <= 20 for time_s in times) == 5
    assert sum(20 < time_s <= 30 + 1e-6 for time_s in times) == 10
    assert times[-2:] == pytest.approx([30.5, 31.0])


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.2, 4))
def test_the_seed_gives_the_arrivals_and_they_ascend(seed, cv):
    times = arrivals(Rate.drift(1, 5, 10), 50, seed, cv)
    assert times == arrivals(Rate.drift(1, 5, 10), 50, seed, cv) == sorted(times)
    assert times != arrivals(Rate.drift(1, 5, 10), 50, seed + 1, cv)


def drawn(distribution, count: int = 20_000) -> list[float]:
    draw = random.Random(5)
    return [distribution.draw(draw) for _ in range(count)]


def test_a_log_normal_has_its_mean_and_variation():
    found = drawn(LogNormal(mean=755, cv=1.0))
    assert statistics.mean(found) == pytest.approx(755, rel=0.05)
    assert statistics.pstdev(found) / statistics.mean(found) == pytest.approx(1.0, rel=0.1)


def test_a_pareto_falls_with_its_power():
    found = drawn(Pareto(alpha=1.2, least=10, most=100_000))
    assert min(found) >= 10 and max(found) <= 100_000
    for bound in (20, 100, 1000):
        share = sum(value > bound for value in found) / len(found)
        assert share == pytest.approx((10 / bound) ** 1.2, rel=0.3)


@settings(deadline=None)
@given(st.floats(1, 100), st.floats(0.1, 5))
def test_lengths_stay_in_their_range(least, cv):
    for distribution in (
        LogNormal(mean=50, cv=cv, least=least, most=least + 9),
        Pareto(alpha=cv, least=least, most=least + 9),
    ):
        assert all(least <= value <= least + 9 for value in drawn(distribution, 20))


def test_independent_requests_are_the_seeds():
    times = arrivals(Rate.steady(3), 40, 1)

    def make(seed: int) -> Workload:
        return independent("w", times, LogNormal(mean=100), Fixed(7), seed)

    assert make(1) == make(1) != make(2)
    assert [request.arrival_s for request in make(1).requests] == times
    assert {(request.output_tokens, request.hash_ids) for request in make(1).requests} == {(7, ())}


PLAN = Conversation(
    turns=Pareto(alpha=1, least=1, most=8),
    message=LogNormal(mean=30, cv=1),
    output=LogNormal(mean=40, cv=1),
    think_s=LogNormal(mean=20, cv=1, least=5),
    tool_s=Fixed(0.5),
    tool_share=0.4,
    system_tokens=50,
)


@settings(deadline=None)
@given(st.integers(0, 50))
def test_a_turn_repeats_what_was_said_before(seed):
    workload = sessions("talk", [0.0, 3.0, 4.0], PLAN, seed)
    assert workload == sessions("talk", [0.0, 3.0, 4.0], PLAN, seed)
    turns: dict[str, list] = {}
    for request in workload.requests:
        turns.setdefault(request.session, []).append(request)
    for those in turns.values():
        assert [request.turn for request in those] == list(range(len(those)))
        for before, after in zip(those, those[1:], strict=False):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert token_ids(after, 500)[: before.prompt_tokens] == token_ids(before, 500)
            assert after.arrival_s > before.arrival_s and (after.gap_s == 0.5 or after.gap_s >= 5)


def test_sessions_share_the_system_prompt_and_nothing_else():
    one, other = sessions(
        "talk",
        [0.0, 1.0],
        Conversation(turns=Fixed(1), message=Fixed(100), output=Fixed(5), think_s=Fixed(1), system_tokens=48),
        1,
    ).requests
    assert token_ids(one, 5000)[:48] == token_ids(other, 5000)[:48]
    assert not set(one.hash_ids[3:]) & set(other.hash_ids)


def test_a_session_ends_before_it_is_too_long():
    plan = Conversation(
        turns=Fixed(50), message=Fixed(30), output=Fixed(30), think_s=Fixed(1), most_tokens=200
    )
    workload = sessions("talk", [0.0], plan, 1)
    assert [r.prompt_tokens + r.output_tokens for r in workload.requests] == [60, 120, 180]


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: Fixed(0), "value"),
        (lambda: LogNormal(mean=-1), "mean"),
        (lambda: LogNormal(mean=1, cv=math.nan), "cv"),
        (lambda: LogNormal(mean=1, least=5, most=4), "least"),
        (lambda: Pareto(alpha=0, least=1, most=2), "alpha"),
        (lambda: Pareto(alpha=1, least=3, most=2), "least"),
        (lambda: Rate(()), "point"),
        (lambda: Rate.steady(0), "rates"),
        (lambda: Rate.drift(-1, 1, 5), "rates"),
        (lambda: Rate(((5.0, 1.0), (5.0, 2.0))), "ascend"),
        (lambda: arrivals(Rate.steady(1), -1, 0), "count"),
        (lambda: arrivals(Rate.steady(1), 1, 0, cv=-1), "cv"),
        (
            lambda: Conversation(
                turns=Fixed(1), message=Fixed(1), output=Fixed(1), think_s=Fixed(1), tool_share=2
            ),
            "tool_share",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()
