"""The cancel bench reports every figure that it promises, and a cluster that holds on to a request shows in them."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from planted import LINGER_S

from penstock.benchmarks.cancel import ALLOWED_MS, STATES, Found, Plan, measure, report, time_chunks
from penstock.benchmarks.watch import QUIET_S, Watch, holds_nothing
from penstock.cli.bench_cancel import command
from penstock.policy.state import LoadView


def found(**changes) -> Found:
    times = {state: [float(value) for value in range(10, 60)] for state in STATES}
    same = {state: [20.0] * 50 for state in STATES}
    made = Found(times, same, alone_ms=[20.0] * 50, chunks_ms=[80.0, 90.0], steps_ms=[5.0, 6.0])
    return replace(made, **changes)


def test_every_promised_figure_is_there_with_unit_and_spread():
    told = report(Plan(), found())
    for state in STATES:
        assert told.units[f"free_p99_ms_{state}"] == told.units[f"limit_ms_{state}"] == "ms"
        assert told.spread[f"free_p99_ms_{state}"] == (10, 59)
        assert told.figures[f"free_p99_ms_{state}"] == 59
    assert told.figures["limit_ms_prefilling"] == 90 + ALLOWED_MS
    assert told.figures["limit_ms_decoding"] == 6 + ALLOWED_MS
    assert told.figures["next_ttft_ratio"] == 1


def test_a_next_request_that_waits_shows():
    waiting = {state: [20.0] * 50 for state in STATES} | {"decoding": [60.0] * 50}
    told = report(Plan(), found(next_ms=waiting))
    assert told.spread["next_ttft_ratio"] == (1, 3)


def test_a_state_that_was_never_met_is_no_figure():
    none = {state: [9.0] for state in STATES} | {"queued": []}
    with pytest.raises(ValueError, match="queued"):
        report(Plan(), found(free_ms=none))


@pytest.mark.parametrize("arguments", [["--samples", "0"], ["--seed", "x"]])
def test_nonsense_is_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output


class Looked(dict):
    """Views, and how often they were looked at."""

    times = 0

    def items(self):
        self.times += 1
        return super().items()


def test_a_chunk_is_timed_from_step_to_step_of_one_instance_while_it_has_a_prompt():
    prompt = LoadView(running=1, queued_tokens=900)

    async def run() -> list[float]:
        loads, told = Looked({"decode-0": LoadView(running=1, steps=90)}), []
        timing = asyncio.create_task(time_chunks(loads, told))
        for steps, runs in ((4, 0), (4, 1), (5, 1), (7, 1), (7, 0), (8, 1), (9, 1)):
            loads["prefill-0"] = replace(prompt, steps=steps) if runs else LoadView(steps=steps)
            seen = loads.times
            while loads.times == seen:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        timing.cancel()
        return told

    (chunk_ms,) = asyncio.run(run())
    assert chunk_ms > 0, "of two steps; what began and ended between two views is not known"


def watching(loads: dict[str, LoadView], work):
    """Run `work(watch)` over views that the test sets."""

    async def run():
        watch = Watch([SimpleNamespace(name=name) for name in loads], heartbeat_s=0.01)
        watch.loads = loads
        return await work(watch)

    return asyncio.run(run())


def test_free_is_when_the_last_instance_holds_nothing_and_it_stays_so():
    loads = {"prefill-0": LoadView(held_blocks=3), "decode-0": LoadView()}

    async def work(watch):
        loop, flipped = asyncio.get_running_loop(), []
        loop.call_later(0.02, loads.update, {"prefill-0": LoadView()})
        loop.call_later(0.05, loads.update, {"decode-0": LoadView(leased_blocks=1)})  # a view that was late
        loop.call_later(
            0.05 + QUIET_S / 2, lambda: (loads.update({"decode-0": LoadView()}), flipped.append(1))
        )
        await watch.since(holds_nothing)
        return flipped

    assert watching(loads, work), "it was believed free between two views"


@pytest.mark.parametrize(
    "load",
    [
        LoadView(held_blocks=1),
        LoadView(leased_blocks=1),
        LoadView(quarantined_blocks=1),
        LoadView(waiting=1),
        LoadView(running=1),
    ],
)
def test_what_is_held_for_ever_ends_the_measurement(load):
    async def work(watch):
        with pytest.raises(TimeoutError, match="decode-0 still"):
            await watch.since(holds_nothing, limit_s=0.05)

    watching({"prefill-0": LoadView(cached_blocks=9, free_blocks=1), "decode-0": load}, work)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_router_that_notices_late_shows_in_every_state():
    told = measure(Plan(samples=2), router="planted:LingeringRouter").figures
    late = {state: told[f"free_p99_ms_{state}"] for state in STATES if state != "queued"}
    assert min(late.values()) >= LINGER_S * 1e3, late


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_instance_that_keeps_a_block_ends_the_measurement():
    with pytest.raises(TimeoutError, match="still"):
        measure(Plan(samples=2), instance="planted:KeepingInstance")
