"""Laws of turns: classes first, tenants evenly, nobody saves up or is starved, and what would be late is refused."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.fairness import (
    MEASURED_S,
    REMEMBERED_S,
    TENANTS,
    Ledger,
    Refusal,
    Slo,
    Waiting,
    ahead_tokens,
    arrived,
    charged,
    first,
    gave_up,
    left,
    moved_per_s,
    refusal,
    wait_s,
)
from penstock.policy.forecast import Pace
from penstock.policy.state import Priority


def one(number, tenant="a", tokens=10, priority=Priority.NORMAL, since=None):
    return Waiting(f"s{number}", tenant, priority, tokens, float(number if since is None else since))


WAITING = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 500), st.sampled_from(Priority)), max_size=20
).map(lambda made: [one(number, *fields) for number, fields in enumerate(made)])
LEDGERS = st.builds(
    Ledger, served=st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1000)), floor=st.floats(0, 500)
)


def run(waiting, ledger, now=0.0):
    """Everybody's turn, in order."""
    order, waiting = [], list(waiting)
    while (next_one := first(waiting, ledger)) is not None:
        waiting.remove(next_one)
        ledger = left(ledger, next_one, len(waiting), now)
        order.append(next_one)
    return order


@given(WAITING, LEDGERS)
def test_high_priority_goes_before_the_rest_and_everybody_has_a_turn(waiting, ledger):
    order = run(waiting, ledger)
    assert sorted(order, key=lambda each: each.session) == sorted(waiting, key=lambda each: each.session)
    assert [each.priority for each in order] == sorted((each.priority for each in order), reverse=True)


@given(WAITING, LEDGERS)
def test_requests_of_one_tenant_and_class_keep_their_order(waiting, ledger):
    for tenant in "abc":
        for priority in Priority:
            own = [
                each.since
                for each in run(waiting, ledger)
                if (each.tenant, each.priority) == (tenant, priority)
            ]
            assert own == sorted(own)


@given(
    st.lists(st.integers(1, 100), min_size=60, max_size=60),
    st.lists(st.integers(1, 100), min_size=60, max_size=60),
)
def test_tenants_that_always_wait_are_served_alike_whatever_they_ask_for(ones, others):
    waiting = [one(number, "a", tokens) for number, tokens in enumerate(ones)]
    waiting += [one(number + 100, "b", tokens) for number, tokens in enumerate(others)]
    served = {"a": 0, "b": 0}
    for each in run(waiting, Ledger())[:60]:
        assert abs(served["a"] - served["b"]) <= 100
        served[each.tenant] += each.tokens


def test_who_floods_the_queue_does_not_hold_back_the_others():
    flood = [one(number, "flood", 100) for number in range(50)]
    late = one(99, "small", 10)
    assert run([*flood, late], Ledger())[1] == late


def test_output_counts_as_well():
    ledger = charged(Ledger(), {"a": 100.0}, {"a", "b"})
    assert first([one(0, "a"), one(1, "b")], ledger) == one(1, "b")


def test_nobody_saves_up_for_a_burst():
    ledger = charged(Ledger(), {"busy": 10_000.0}, {"busy"})
    ledger = arrived(ledger, "idle", {"busy"})
    assert ledger.count("idle") == ledger.count("busy")
    ledger = arrived(left(ledger, one(0, "busy", 50), 0, 0.0), "later", set())
    assert ledger.count("later") == 10_000.0, "where the last one stood whose turn it was"


def test_who_owes_keeps_owing():
    ledger = charged(Ledger(), {"greedy": 500.0, "modest": 10.0}, {"greedy", "modest"})
    ledger = charged(ledger, {}, {"modest"})
    assert arrived(ledger, "greedy", {"modest"}).count("greedy") == 500.0


@given(LEDGERS, st.sets(st.sampled_from("abcd")), st.sampled_from("abcd"))
def test_forgetting_a_tenant_changes_nothing_for_it(ledger, active, tenant):
    after = charged(ledger, {}, active)
    if tenant not in active:
        assert arrived(after, tenant, active).count(tenant) == arrived(ledger, tenant, active).count(tenant)


def test_the_ledger_stays_bounded():
    ledger = Ledger(served={str(number): float(number + 1) for number in range(2 * TENANTS)})
    kept = charged(ledger, {}, set()).served
    assert len(kept) == TENANTS and str(2 * TENANTS - 1) in kept


# ---- how long it takes


@given(WAITING, LEDGERS, st.sampled_from("abc"), st.sampled_from(Priority))
def test_what_is_ahead_is_what_goes_first(waiting, ledger, tenant, priority):
    mine = one(1000, tenant, 10, priority)
    order = run([*waiting, mine], ledger)
    truly = sum(each.tokens for each in order[: order.index(mine)])
    assert abs(ahead_tokens(mine, waiting, ledger) - truly) <= 3 * 500, (
        "a request of each tenant more or less"
    )


def test_the_rate_is_known_once_the_queue_has_moved_for_a_while():
    ledger = Ledger()
    for tick in range(40):
        ledger = left(ledger, one(tick, tokens=100), 5, tick / 10)
        assert (moved_per_s(ledger, tick / 10) is None) == (tick / 10 < MEASURED_S)
    assert moved_per_s(ledger, 3.9) == pytest.approx(1000, rel=0.05)
    assert moved_per_s(left(ledger, one(50), 0, 4.0), 4.0) is None, "nobody waits any more"


def test_the_rate_follows_a_change():
    ledger = Ledger()
    for tick in range(int(10 * REMEMBERED_S)):
        ledger = left(ledger, one(tick, tokens=100), 5, tick / 10)
    now = REMEMBERED_S
    for tick in range(int(20 * REMEMBERED_S)):
        now += 0.1
        ledger = left(ledger, one(tick, tokens=10), 5, now)
    assert moved_per_s(ledger, now) < 200


def test_the_wait_is_for_those_before_it_and_for_what_instances_have():
    pace, waiting = Pace(queue_s=0.5, tokens_per_s=100.0, alone_per_s=50.0), [one(0, tokens=200)]
    mine = one(1)
    assert wait_s(mine, [], Ledger(), pace, 0.0) == 0.5
    assert wait_s(mine, waiting, Ledger(), pace, 0.0) == 0.5 + 2.0
    slow = Ledger(moving_since=0.0, moved_tokens=100.0)
    assert wait_s(mine, waiting, slow, pace, 10.0) == 0.5 + 20.0, "as fast as it moved, not as it might"
    assert wait_s(mine, waiting, Ledger(), Pace(), 0.0) == 0.0, "nothing is known"


# ---- who is refused


def refused(begins_s=0.0, prefill_s=0.1, waits=0, more=1, most=10, slo=None, usual_s=0.5, late=1.0):
    return refusal(waits, more, most, begins_s, prefill_s, usual_s, slo or Slo(ttft_s=2.0), late)


def test_what_would_miss_its_slo_is_refused_and_told_when_to_come_back():
    assert refused(begins_s=1.8) is None
    late = refused(begins_s=5.0)
    assert isinstance(late, Refusal) and late.retry_s == pytest.approx(3.1) and "2 s" in late.reason
    assert refused(begins_s=5.0, slo=Slo()) is None, "nothing was promised"


def test_a_prompt_that_alone_takes_longer_than_the_slo_is_taken_while_nobody_waits():
    assert refused(prefill_s=9.0) is None
    assert refused(prefill_s=9.0, begins_s=0.4) is None
    assert refused(prefill_s=9.0, begins_s=1.0)


def test_what_is_foreseen_may_take_longer():
    assert refused(begins_s=0.8) is None
    assert refused(begins_s=0.8, late=3.0)
    assert refused(begins_s=0.0, prefill_s=1.0, late=3.0) is None, (
        "it is never refused for what it costs alone"
    )


def test_a_full_queue_takes_nobody():
    assert refused(waits=9) is None
    full = refused(waits=10, begins_s=4.0, slo=Slo())
    assert full and full.retry_s == 4.0
    assert refused(waits=6, more=4) is None and refused(waits=6, more=5), "each choice waits"


def test_who_gives_up_costs_its_tenant_nothing_and_is_no_sign_of_pace():
    ledger = Ledger()
    for tick in range(20):
        ledger = left(ledger, one(tick, tokens=100), 5, tick / 10)
    before = moved_per_s(ledger, 4.0)
    assert gave_up(ledger, 4) == ledger and moved_per_s(gave_up(ledger, 4), 4.0) == before
    alone = gave_up(ledger, 0)
    assert alone.served == ledger.served and moved_per_s(alone, 4.0) is None, "nobody waits any more"


@pytest.mark.parametrize("wrong", [{"ttft_s": -1.0}, {"tpot_s": math.nan}])
def test_a_wrong_slo_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(Slo(), **wrong)
