"""The scheduling bench plays one load to every policy, and its figures tell a worse policy from a better one."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from penstock.benchmarks.gaps import Arrival
from penstock.benchmarks.outcomes import Outcome
from penstock.benchmarks.scheduling import (
    BLOCKS,
    CLASSES,
    FREENESS,
    HIGH_SHARE,
    INSTANCES,
    MIGRATION,
    PD,
    POLICIES,
    Found,
    Plan,
    Sample,
    configured,
    handover_waits_s,
    preempted_when_full,
    report,
    requests,
    speedup,
)
from penstock.cli.bench_scheduling import command
from penstock.cluster.config import default
from penstock.cluster.workload import Request


def outcome(ttft_s: float, *more: tuple[float, str], priority: str = "normal") -> Outcome:
    """Due at 0; a token of `prefill-0` after `ttft_s`, then one for each (seconds after it, instance)."""
    request = Request(arrival_s=0.0, prompt_tokens=5, output_tokens=1 + len(more), priority=priority)
    came = [Arrival(ttft_s, 0, 1, "prefill-0")]
    came += [Arrival(ttft_s + at_s, 1 + place, 1, maker) for place, (at_s, maker) in enumerate(more)]
    return Outcome(request, 0.0, 0.0, came, came[-1].at_s, finish="length")


def found() -> dict[str, Found]:
    runs = {}
    for place, run in enumerate((*POLICIES, PD, CLASSES)):
        some = [outcome(1.0 + place, (0.3, "decode-0"), (0.4, "decode-0")) for _ in range(20)]
        runs[run] = Found([*some, outcome(0.5, (0.1, "decode-1"), priority="high")], preemptions=10 - place)
    return runs


def test_every_promised_figure_is_there_with_its_unit():
    told = report(Plan(), found())
    for place, run in enumerate((*POLICIES, PD, CLASSES)):
        assert told.units[f"ttft_p99_s_{run}"] == told.units[f"itl_p99_s_{run}"] == "s"
        assert told.figures[f"ttft_p99_s_{run}"] == 1 + place
        assert told.figures[f"itl_p99_s_{run}"] == pytest.approx(0.3)
        assert told.figures[f"preemptions_{run}"] == 10 - place
    assert told.figures["handover_wait_p99_s_pd"] == pytest.approx(0.3)
    assert told.figures["high_priority_speedup"] > 1


def test_a_run_that_serves_nothing_is_no_figure():
    with pytest.raises(ValueError, match="freeness"):
        report(Plan(), found() | {"freeness": Found([outcome(1.0)])})


def test_a_class_is_faster_by_its_time_for_each_token():
    slow = [outcome(3.0, (1.0, "a")) for _ in range(3)]
    fast = [outcome(0.5, (0.5, "a"), priority="high") for _ in range(2)]
    assert speedup(Found([*slow, *fast])) == pytest.approx(4)
    failed = replace(fast[0].request, priority="high")
    assert speedup(Found([*slow, Outcome(failed, 0.0)])) == 0, "nobody of the high class was served"


def test_preemptions_count_as_of_full_memory_where_no_instance_had_room():
    held = [(0.5, 0), (0.8, 3), (0.95, 4), (0.99, 10), (0.85, 12), (0.4, 13)]
    assert preempted_when_full([Sample(*one) for one in held]) == 1 + 6 + 2
    assert preempted_when_full([]) == 0


def test_the_wait_of_a_handover_is_the_gap_at_the_first_change_of_owner():
    moved = outcome(1.0, (0.5, "decode-0"), (0.6, "decode-0"), (9.0, "decode-1"), (9.1, "decode-1"))
    assert handover_waits_s([moved]) == pytest.approx([0.5])
    assert handover_waits_s([outcome(1.0, (0.5, "prefill-0"))]) == []


def test_the_load_is_the_same_for_all_heavy_tailed_and_fits_an_instance():
    plan = Plan()
    load = requests(plan)
    assert load == requests(plan) != requests(Plan(seed=plan.seed + 1))
    assert load.duration_s == pytest.approx(plan.seconds) and len(load) == plan.rate_per_s * plan.seconds
    lengths = sorted(one.prompt_tokens for one in load.requests)
    assert lengths[-1] > 10 * lengths[len(lengths) // 2], "some are much longer than most"
    assert max(one.prompt_tokens + one.output_tokens for one in load.requests) <= 16 * BLOCKS
    high = sum(one.priority == "high" for one in load.requests) / len(load)
    assert high == pytest.approx(HIGH_SHARE, abs=0.05)
    assert MIGRATION in POLICIES


def test_the_policies_differ_in_nothing_but_the_rule_and_the_moves():
    clusters = {run: configured(run) for run in (*POLICIES, PD)}
    rules = {run: clusters[run].router.dispatch for run in POLICIES}
    assert rules == {run: FREENESS if run == MIGRATION else run for run in POLICIES}
    assert [run for run, config in clusters.items() if config.cluster.migrate] == [MIGRATION, PD]
    assert configured(CLASSES) == clusters[MIGRATION]
    mixed, *others = (
        replace(
            clusters[run],
            router=replace(clusters[run].router, dispatch=FREENESS),
            cluster=replace(clusters[run].cluster, migrate=True),
        )
        for run in POLICIES
    )
    assert all(other == mixed for other in others)
    assert (mixed.engine.admission, mixed.router.ahead_s, mixed.cluster.mixed) == (
        "aggressive",
        0.0,
        INSTANCES,
    )
    assert clusters[PD].engine.admission == default().engine.admission
    assert (clusters[PD].cluster.prefill, clusters[PD].cluster.decode) == (1, INSTANCES - 1)


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--seconds", "nan"], ["--seed", "x"]])
def test_nonsense_is_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output
