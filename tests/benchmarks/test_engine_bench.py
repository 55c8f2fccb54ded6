"""`bench engine` runs the shipped engine by itself, gives each side the same work, and reports what it promises."""

import pytest
from click.testing import CliRunner

from penstock.benchmarks.alone import Alone, Job, model_seconds
from penstock.benchmarks.engine import Plan, _mixed, measure
from penstock.benchmarks.peer import ROLE, Transformers
from penstock.cli.bench_engine import command
from penstock.engine.config import EngineConfig
from penstock.engine.model import Model

PLAN = Plan(rounds=2, mixed=3, equal=2, batches=(1, 2), contexts=(16, 64), large=False)
JOBS = [Job(tuple(range(10, 10 + length)), tokens) for length, tokens in ((40, 12), (3, 1), (600, 20))]


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone(PLAN.config("embedded", 2000), ROLE)


def test_both_peers_and_the_instance_give_the_same_tokens(alone):
    peer = Transformers.of(EngineConfig().folder, 2000)
    outputs = alone.run(JOBS)
    assert [len(output) for output in outputs] == [12, 1, 20]
    assert outputs == peer.generate(JOBS) == peer.continuous(JOBS)
    with peer.running() as run:
        assert outputs == run(JOBS) == run(JOBS)
    assert alone.idle


def test_jobs_that_were_begun_are_run_by_rounds(alone):
    (session,) = alone.begin(JOBS[:1])
    assert alone.outputs(session) == []
    assert alone.round() and len(alone.outputs(session)) == 1
    rounds = 1
    while alone.round():
        rounds += 1
    assert rounds == len(alone.outputs(session)) == 12 and alone.idle


def test_only_the_model_is_timed_and_nothing_of_it_stays(alone):
    forward, logits = Model.forward, Model.logits
    ticks = iter(range(1000))
    with model_seconds(lambda: next(ticks)) as spent:
        alone.run(JOBS[1:2])
    assert spent == [1, 1]
    assert (Model.forward, Model.logits) == (forward, logits)


def test_every_figure_is_there_with_a_unit_and_its_spread():
    report = measure(PLAN)
    for lengths in ("mixed", "equal"):
        for which in ("continuous", "running", "generate"):
            key = f"ratio_{which}_{lengths}"
            low, high = report.spread[key]
            assert 0 < low <= report.figures[key] <= high
    for batch in (1, 2):
        assert 0 < report.figures[f"overhead_share_b{batch}"] < 1
    assert report.figures["step_fit_error_p50"] <= report.figures["step_fit_error_max"]
    assert report.units["tokens_per_s_penstock_mixed"] == "tokens/s"


def test_the_instance_decodes_the_largest_batch_at_once():
    assert Plan().role.decode_slots == max(Plan().batches) == 128
    assert PLAN.role.decode_slots == ROLE.decode_slots


def test_mixed_jobs_have_the_lengths_of_the_trace_in_its_order():
    jobs = _mixed(3, 4096)
    assert [(len(job.prompt), job.tokens) for job in jobs] == [(47, 11), (50, 27), (110, 14)]
    assert jobs == _mixed(3, 4096)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--threads", "-1"], ["--rounds", "many"]])
def test_counts_that_are_none_are_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    outcome = CliRunner().invoke(command, ["--model", str(tmp_path / "none")])
    assert isinstance(outcome.exception, ValueError) and "no checkpoint folder" in str(outcome.exception)
