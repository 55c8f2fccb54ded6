"""The overload bench tells served from refused, flat from growing memory, and when service is whole again."""

import grpc
import pytest
from click.testing import CliRunner

from penstock.benchmarks.gaps import Arrival
from penstock.benchmarks.outcomes import Outcome
from penstock.benchmarks.overload import (
    PROBE,
    PROBE_S,
    PROBES_PER_S,
    TIMES,
    Found,
    Plan,
    growth_mib,
    overload,
    recovered_after_s,
    report,
)
from penstock.cli.bench_overload import command
from penstock.cluster.workload import Request
from penstock.policy.fairness import Slo

SLO = Slo(ttft_s=1.0, tpot_s=0.1)
PLAN = Plan(seconds=60.0)


def outcome(due_s: float, ttft_s: float = 0.5, application: str = "") -> Outcome:
    request = Request(arrival_s=due_s, prompt_tokens=5, output_tokens=2, application=application)
    came = [Arrival(due_s + ttft_s, 0, 1, "decode-0"), Arrival(due_s + ttft_s + 0.05, 1, 1, "decode-0")]
    return Outcome(request, due_s, due_s, came, due_s + ttft_s + 0.05, finish="length")


def refused(due_s: float, after_s: float) -> Outcome:
    request = Request(arrival_s=due_s, prompt_tokens=5, output_tokens=2)
    error = grpc.StatusCode.RESOURCE_EXHAUSTED
    return Outcome(request, due_s, due_s, ended_s=due_s + after_s, error=error, message="no room")


def probes(*ttfts_s: float) -> list[Outcome]:
    return [outcome(60.0 + (n + 1) / PROBES_PER_S, ttft_s, PROBE) for n, ttft_s in enumerate(ttfts_s)]


def found(outcomes) -> Found:
    return Found(SLO, 10.0, list(outcomes), [(at_s, 500.0) for at_s in range(0, 75, 2)])


def test_every_promised_figure_is_there_with_its_unit():
    sent = [outcome(1.0), outcome(2.0, ttft_s=3.0), refused(3.0, 0.02), refused(4.0, 0.08)]
    told = report(PLAN, found([*sent, *probes(0.1, 0.1)]))
    promised = {
        "attainment_accepted": "1",
        "refused_share": "1",
        "refusal_p99_ms": "ms",
        "rss_growth_mib": "MiB",
        "recovered_after_s": "s",
    }
    assert {key: told.units[key] for key in promised} == promised
    assert told.figures["attainment_accepted"] == told.figures["refused_share"] == 0.5
    assert told.figures["refusal_p99_ms"] == pytest.approx(80)
    assert told.figures["hinted_share"] == 0, "nobody told them when to come back"
    assert told.figures["rss_growth_mib"] == 0 and told.figures["recovered_after_s"] == 0.5


def test_an_accepted_request_that_fails_is_not_served():
    failed = outcome(1.0)
    failed.finish, failed.error = "", grpc.StatusCode.UNAVAILABLE
    told = report(PLAN, found([failed, outcome(2.0), *probes(0.1)])).figures
    assert told["attainment_accepted"] == 0.5 and told["failed"] == 1 and told["refused_share"] == 0


def test_service_is_whole_from_the_probe_on_after_which_none_is_slow():
    assert recovered_after_s(probes(0.1, 0.1, 0.1), SLO, 60.0) == 0.5
    assert recovered_after_s(probes(0.1, 5.0, 0.1), SLO, 60.0) == 1.5
    assert recovered_after_s(probes(0.1, 0.1, 5.0), SLO, 60.0) == PROBE_S


def test_memory_that_grows_while_the_load_is_on_shows():
    steady = [(float(at_s), 100.0 + (50.0 if at_s > 5 else 0.0)) for at_s in range(60)]
    leaking = [(float(at_s), 100.0 + at_s) for at_s in range(60)]
    assert growth_mib(steady, 60.0) == 0 and growth_mib(leaking, 60.0) == pytest.approx(39.5, abs=1)


def test_the_load_is_three_times_the_capacity_and_probes_follow_it():
    load = overload(PLAN, capacity_per_s=5.0)
    sent = [request for request in load.requests if request.application != PROBE]
    after = [request.arrival_s for request in load.requests if request.application == PROBE]
    assert len(sent) == TIMES * 5 * 60 and sent[-1].arrival_s == pytest.approx(60)
    assert min(after) > 60 and max(after) == 60 + PROBE_S


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seed", "x"]])
def test_nonsense_is_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output
