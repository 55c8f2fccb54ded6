"""The recovery bench measures what clients feel of a fault, and notices a stream that is not what it should be."""

import asyncio

import pytest
from click.testing import CliRunner
from scripted_router import Scripted, against

from penstock.benchmarks.gaps import Arrival
from penstock.benchmarks.recovery import KINDS, MOVING, Found, Plan, compare_all, measure, report
from penstock.benchmarks.witness import Asked, Witness, grown
from penstock.cli.bench_recovery import command
from penstock.client import AsyncClient, Delta
from penstock.engine.config import EngineConfig

FOLDER = EngineConfig().folder


def witness(tokens=(5, 6, 7), name="one", times=(1.0, 1.01, 1.5)) -> Witness:
    made = Witness(Asked.draw(name, 8, 100), began=0.5)
    made.tokens = list(tokens)
    made.arrivals = [Arrival(at_s, place, 1, f"decode-{place // 2}") for place, at_s in enumerate(times)]
    return made


def found(**changes) -> Found:
    made = Found(
        {kind: [10.0, 20.0, 90.0] for kind in KINDS},
        {kind: [1.0, 2.0, 3.5] for kind in MOVING},
        {kind: [0.0, 40.0] for kind in KINDS},
        reprefill_ms=[30.0],
        witnesses=[witness()],
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_every_promised_figure_is_there_with_unit_and_spread():
    told = report(Plan(), found())
    for kind in KINDS:
        assert told.figures[f"gap_p50_ms_{kind}"] == 20 and told.figures[f"gap_p99_ms_{kind}"] == 90
        assert told.spread[f"gap_p99_ms_{kind}"] == (10, 90)
        assert told.figures[f"recomputed_tokens_{kind}"] == 20
        assert told.units[f"gap_p50_ms_{kind}"] == "ms"
    for kind in MOVING:
        assert told.figures[f"gap_steps_p50_{kind}"] == 2 and told.figures[f"gap_steps_max_{kind}"] == 3.5
        assert told.units[f"gap_steps_p99_{kind}"] == "steps"
    assert told.figures["mismatched"] == told.figures["duplicated"] == told.figures["missing"] == 0


def test_a_kind_that_struck_no_stream_is_no_figure():
    gaps = {kind: [1.0] for kind in KINDS} | {"hang": []}
    with pytest.raises(ValueError, match="hang"):
        report(Plan(), found(gaps_ms=gaps))


def test_a_gap_is_the_longest_wait_that_ended_after_the_fault():
    one = witness()
    assert one.gap_ms(1.2) == pytest.approx(490) and one.owner_at(1.2) == "decode-0"
    assert one.gap_ms(1.005) == pytest.approx(490), "a token that was on its way ends no gap"
    assert one.gap_ms(0.8) == pytest.approx(500) and one.owner_at(0.8) == "", "it waited from its beginning"
    assert one.gap_ms(1.6) is None


def test_a_gap_in_steps_is_beside_the_median_wait_since_the_fault():
    one = witness(times=(1.0, 1.9, 2.0, 2.3, 2.4, 2.5, 2.55))
    assert one.gap_steps(1.95) == pytest.approx(3), "what came before does not count"
    assert one.gap_steps(1.5) == pytest.approx(9) and one.gap_steps(2.6) is None


@pytest.mark.parametrize(
    "deltas, tokens, duplicated, missing",
    [
        ([(0, (1, 2)), (2, (3,))], [1, 2, 3], 0, 0),
        ([(0, (1, 2)), (1, (2, 3))], [1, 2, 3], 1, 0),
        ([(0, (1, 2)), (0, (1,))], [1, 2], 1, 0),
        ([(0, (1,)), (3, (4,))], [1, 4], 0, 2),
    ],
)
def test_what_comes_twice_or_not_at_all_is_counted(deltas, tokens, duplicated, missing):
    one = Witness(Asked.draw("one", 8, 100), began=0.0)
    for first, ids in deltas:
        one._take(Delta(0, first, ids, "", "decode-0"))
    assert (one.tokens, one.duplicated, one.missing) == (tokens, duplicated, missing)


def test_a_stream_that_differs_from_the_undisturbed_one_is_mismatched():
    same, other = found(), found(witnesses=[witness(tokens=(5, 6, 8))])
    said: list[str] = []
    compare_all(same, [witness()], FOLDER, said.append)
    assert (same.mismatched, same.ties) == (0, 0)
    compare_all(other, [witness()], FOLDER, said.append)
    assert other.mismatched > 0 and "wrong from token" in said[-1]


def test_an_error_of_a_stream_is_told_and_counted():
    broken = found(witnesses=[witness()])
    broken.witnesses[0].error = "it failed"
    said: list[str] = []
    compare_all(broken, [witness()], FOLDER, said.append)
    assert said == ["one: it failed"] and report(Plan(), broken).figures["failed"] == 1


def test_equal_requests_are_asked_for_whenever_they_are_asked():
    script = Scripted()

    async def work(address):
        async with AsyncClient(address) as client:
            asked = Asked.draw("one", 8, 100)
            some = [Witness.begin(client, asked, 4, label) for label in ("", "-again")]
            await grown(some, 4)
            await asyncio.gather(*(one.task for one in some))

    against(script, work)
    one, other = script.asked
    assert one.request_id != other.request_id
    other.request_id = one.request_id
    assert one == other and one.sampling.HasField("seed") and one.sampling.ignore_eos


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seed", "x"]])
def test_nonsense_is_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_blocks_that_a_transport_alters_show_as_other_tokens():
    told = measure(Plan(rounds=1, kinds=("kill_decode",)), instance="planted:AlteringInstance")
    assert told.figures["mismatched"] > 0
