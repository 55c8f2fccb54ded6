"""The load generator sends what is due when it is due, and says what became of it."""

import time

import grpc
import pytest
from click.testing import CliRunner
from scripted_router import Scripted, against

from penstock.benchmarks.gaps import Arrival
from penstock.benchmarks.load import Load, at_rate, fitting, told
from penstock.benchmarks.outcomes import LATE_S, Outcome, attainment, latencies, lateness
from penstock.benchmarks.replay import Plan, _play, report
from penstock.cli.bench_load import command
from penstock.client import AsyncClient
from penstock.cluster.arrivals import Fixed, Rate, arrivals, independent
from penstock.cluster.workload import Request, Workload
from penstock.policy.fairness import Slo

SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def play(script: Scripted, load: Workload, **options) -> list[Outcome]:
    async def work(address):
        async with AsyncClient(address) as client:
            return await Load(client, vocabulary=100, **options).play(load)

    return against(script, work)


def many(count: int, per_s: float, **fields) -> Workload:
    requests = [
        Request(arrival_s=place / per_s, prompt_tokens=5, output_tokens=3, **fields) for place in range(count)
    ]
    return Workload.of("many", requests)


def outcome(ttft_s: float, itls_s: list[float], **fields) -> Outcome:
    """A finished one that was due at 10 s."""
    request = Request(arrival_s=10.0, prompt_tokens=5, output_tokens=1 + len(itls_s))
    times = [10.0 + ttft_s]
    for itl_s in itls_s:
        times.append(times[-1] + itl_s)
    came = [Arrival(at_s, place, 1, "decode-0") for place, at_s in enumerate(times)]
    made = Outcome(request, 10.0, 10.0, came, times[-1], finish="length")
    for name, value in fields.items():
        setattr(made, name, value)
    return made


# ---- sending


def test_requests_are_sent_though_none_is_answered():
    outcomes = play(Scripted(answers_after=40), many(40, per_s=200))
    assert len(outcomes) == 40
    assert all(one.done and one.tokens == 3 for one in outcomes)
    assert [one.due_s for one in outcomes] == sorted(one.due_s for one in outcomes)


def test_a_turn_of_a_conversation_is_due_after_the_one_before_has_ended():
    turns = [
        Request(
            arrival_s=0.0, prompt_tokens=4, output_tokens=2, session="a", turn=turn, gap_s=0.05 * (turn > 0)
        )
        for turn in range(3)
    ]
    outcomes = play(Scripted(), Workload.of("conversation", turns))
    for before, after in zip(outcomes, outcomes[1:], strict=False):
        assert after.due_s == before.ended_s + 0.05 and after.sent_s >= after.due_s


def test_a_generator_that_is_held_up_says_so():
    def stall(ended: Outcome) -> None:
        if ended.due_s == 0:
            time.sleep(4 * LATE_S)

    outcomes = play(Scripted(), many(20, per_s=100), ended=stall)
    figures = lateness(outcomes)
    assert figures["fell_behind"][0] > 0 and figures["late_p99_ms"][0] > 1e3 * LATE_S
    late = max(outcomes, key=lambda one: one.late_s)
    assert late.ttft_s >= late.late_s, "what the generator delays counts as the client's wait"


def test_prompts_are_the_workloads_and_the_seeds():
    shared = Request(
        arrival_s=0.0, prompt_tokens=40, output_tokens=1, hash_ids=(1, 2), hash_block_tokens=16, tenant="a"
    )
    script = Scripted()
    play(script, Workload.of("shared", [shared, shared]))
    one, other = script.asked
    assert one.token_ids.ids[:32] == other.token_ids.ids[:32] and one.token_ids.ids != other.token_ids.ids
    assert len(one.token_ids.ids) == 40 and max(one.token_ids.ids) < 100
    asked = one.sampling
    assert (one.tenant, asked.max_tokens, asked.ignore_eos, asked.temperature) == ("a", 1, True, 0)


def test_refusals_and_failures_are_told_apart():
    requests = [
        Request(arrival_s=0.0, prompt_tokens=5, output_tokens=2, tenant=tenant)
        for tenant in ("refused", "failing", "served", "served")
    ]
    outcomes = play(Scripted(), Workload.of("some", requests))
    assert sorted((one.refused, one.done, one.tokens) for one in outcomes) == [
        (False, False, 2),
        (False, True, 2),
        (False, True, 2),
        (True, False, 0),
    ]
    assert [one.retry_s for one in outcomes if one.refused] == [1.5]
    assert attainment(outcomes, SLO) == 0.5
    assert "RESOURCE_EXHAUSTED: no room" in told(outcomes) and "INTERNAL: a defect" in told(outcomes)


# ---- figures


def test_a_request_is_served_where_both_limits_hold():
    assert outcome(0.9, [0.05] * 9).meets(SLO)
    assert not outcome(1.1, [0.05] * 9).meets(SLO)
    assert not outcome(0.9, [0.2] * 9).meets(SLO)
    assert not outcome(0.9, [0.05] * 9, finish="", error=grpc.StatusCode.INTERNAL).meets(SLO)
    mixed = [outcome(0.9, [0.2]), outcome(1.1, [0.05]), outcome(0.9, [0.05]), outcome(0.9, [])]
    assert attainment(mixed, SLO) == 0.5, "each limit alone holds in three of four"
    assert attainment([], SLO) == 0.0


def test_latencies_are_those_of_all_tokens():
    figures = latencies([outcome(0.5, [0.1, 0.3]), outcome(0.7, [0.2])])
    assert figures["ttft_p50_s"] == (pytest.approx(0.6), "s")
    assert figures["tpot_p99_s"][0] == pytest.approx(0.2)
    assert figures["itl_p99_s"][0] == pytest.approx(0.3)


def test_a_workload_is_sent_at_the_rate_that_was_asked_for():
    load = independent("made", arrivals(Rate.steady(2.0), 400, seed=1, cv=4.0), Fixed(5), Fixed(3), seed=1)
    paced = at_rate(load, per_s=8.0, seconds=10.0)
    assert len(paced) == 80 and paced.duration_s == pytest.approx(10)
    assert at_rate(load, per_s=8.0, seconds=100.0).duration_s == pytest.approx(50), "it has no more requests"
    assert len(at_rate(many(1, per_s=1), 1.0, 1.0)) == 1


def test_requests_too_long_for_the_model_are_left_out_and_counted():
    plan = Plan(workload="azure", rate_per_s=200.0, seconds=0.5, slo=SLO, scale_output=0.01)
    load = plan.requests()
    outcomes, too_long = against(Scripted(), lambda address: _play(plan, load, address))
    assert too_long == sum(one.prompt_tokens + one.output_tokens > 4096 for one in load.requests)
    figures = report(plan, outcomes, too_long).figures
    assert figures["done"] == figures["requests"] == len(load) - too_long == len(fitting(load, 4096))
    assert figures["attainment"] == attainment(outcomes, SLO)
    with pytest.raises(ValueError, match="short enough"):
        report(plan, [], 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--seconds", "-1"],
        ["--ttft", "nan"],
        ["--scale-prompt", "0"],
        ["--config", "nowhere"],
    ],
)
def test_what_cannot_be_sent_is_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output


def test_a_trace_that_is_none_is_told_by_name(tmp_path):
    (tmp_path / "trace.csv").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"trace\.csv:1"):
        Plan(workload=str(tmp_path / "trace.csv"), rate_per_s=1.0, seconds=1.0, slo=SLO).requests()
