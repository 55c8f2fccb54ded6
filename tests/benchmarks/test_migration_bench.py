"""The migration bench reports every figure that it promises, from streams that it does not believe blindly."""

import asyncio

import grpc.aio
import pytest
from click.testing import CliRunner

from penstock.benchmarks.figures import quantile
from penstock.benchmarks.gaps import Arrival, Downtime
from penstock.benchmarks.migration import (
    BLOCKING,
    CONTEXTS,
    LIVE,
    RECOMPUTE,
    Plan,
    Samples,
    _next,
    measure,
    report,
)
from penstock.benchmarks.seesaw import step_ms
from penstock.benchmarks.streams import Streams
from penstock.cli.bench_migration import command
from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc as rpc


def samples(plan: Plan) -> Samples:
    found = Samples(slowdowns=[1.0, 1.02, 1.1], still_ms=[9.0, 10.0, 11.0])
    for context in plan.contexts:
        for mode, count in ((LIVE, plan.samples), (BLOCKING, plan.samples), (RECOMPUTE, plan.recomputed)):
            found.downtimes[mode, context] = [
                Downtime("decode-0", "decode-1", 9, 20.0 + place, 10.0) for place in range(count)
            ]
    return found


def test_every_promised_figure_is_there_with_unit_and_spread():
    told = report(Plan(), samples(Plan()), pinned=2)
    promised = {"neighbour_slowdown": "1"}
    for context in CONTEXTS:
        promised |= {f"live_{share}_ms_{context}": "ms" for share in ("p50", "p99")}
        promised |= {f"live_{share}_steps_{context}": "steps" for share in ("p50", "p99")}
        promised |= {f"{mode}_p50_ms_{context}": "ms" for mode in (BLOCKING, RECOMPUTE)}
    assert {key: told.units[key] for key in promised} == promised
    assert promised.keys() <= told.spread.keys()
    assert all(low <= told.figures[key] <= high for key, (low, high) in told.spread.items())
    assert told.figures["live_samples_128"] == 100 and told.figures["recompute_samples_8192"] == 10


def test_quantiles_are_values_that_so_many_do_not_exceed():
    values = [float(value) for value in range(100, 0, -1)]
    assert quantile(values, 0.5) == 50.5
    assert quantile(values, 0.99) == 99
    assert quantile([3.0], 0.99) == quantile([3.0], 0.5) == 3.0


def test_modes_take_turns_until_each_has_its_samples():
    plan, found, order = Plan(contexts=(128,), samples=24, recomputed=2), Samples(), []
    while wanted := _next(plan, found, 128):
        mode, left = wanted
        assert left > 0
        order.append(mode)
        one = Downtime("a", "b", 1, 2.0, 1.0)
        found.downtimes.setdefault((mode, 128), []).extend([one] * min(left, 8))
    assert {mode: order.count(mode) for mode in order} == {LIVE: 3, BLOCKING: 3, RECOMPUTE: 1}
    assert order[:3] == [LIVE, BLOCKING, RECOMPUTE]


def test_step_time_is_that_of_all_streams_however_many_tokens_come_at_once():
    even = [Arrival(0.01 * place, place, 1, "a") for place in range(11)]
    lumpy = [Arrival(0.0, 0, 1, "a"), Arrival(0.1, 1, 5, "a")]
    assert step_ms([even]) == pytest.approx(10)
    assert step_ms([even, lumpy]) == pytest.approx((100 + 100) / 15)


@pytest.mark.parametrize(
    "arguments", [["--samples", "0"], ["--recomputed", "-1"], ["--context", "5"], ["--context", "20000"]]
)
def test_counts_and_contexts_that_cannot_be_measured_are_refused(arguments):
    outcome = CliRunner().invoke(command, arguments)
    assert outcome.exit_code == 2 and arguments[0] in outcome.output


# ---- streams


class Scripted(rpc.InferenceServiceServicer):
    """Sends deltas of one token with these indexes, then ends or goes on for ever."""

    def __init__(self, indexes: list[int], ends: bool):
        self.indexes = indexes
        self.ends = ends
        self.left = asyncio.Event()

    async def Generate(self, request, context):
        self.request = request
        await context.write(pb.GenerateResponse(started=pb.Started(request_id=request.request_id)))
        for index in self.indexes:
            delta = pb.Delta(first_index=index, token_ids=[5], instance=f"decode-{index // 3}")
            await context.write(pb.GenerateResponse(delta=delta))
        try:
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.left.set()


def against(script: Scripted, work):
    """Run `work(streams)` against a router that plays the script."""

    async def run():
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        rpc.add_InferenceServiceServicer_to_server(script, server)
        await server.start()
        try:
            async with asyncio.timeout(20), Streams(f"127.0.0.1:{port}", vocabulary=100) as streams:
                return await work(streams)
        finally:
            await server.stop(None)

    return asyncio.run(run())


def test_a_stream_counts_its_tokens_and_knows_their_maker():
    script = Scripted([0, 1, 2, 3, 4], ends=False)

    async def work(streams):
        stream = streams.begin(prompt_tokens=7, most=50)
        await stream.reach(5)
        assert (stream.tokens, stream.context, stream.instance) == (5, 12, "decode-1")
        times = [arrival.at_s for arrival in stream.arrivals]
        assert times == sorted(times)

    against(script, work)
    asked = script.request.sampling
    assert len(script.request.token_ids.ids) == 7 and max(script.request.token_ids.ids) < 100
    assert asked.ignore_eos and asked.max_tokens == 50 and asked.temperature == 0


def test_a_closed_stream_cancels_its_request():
    script = Scripted([0], ends=False)

    async def work(streams):
        stream = streams.begin(prompt_tokens=1, most=9)
        await stream.reach(1)
        await streams.close(stream)
        await script.left.wait()

    against(script, work)


@pytest.mark.parametrize("indexes", [[0, 2], [0, 1, 1], [1]])
def test_a_token_out_of_order_ends_the_measurement(indexes):
    async def work(streams):
        with pytest.raises(AssertionError, match="did not come next"):
            await streams.begin(prompt_tokens=1, most=9).reach(9)

    against(Scripted(indexes, ends=False), work)


def test_a_stream_that_ends_early_is_noticed():
    async def work(streams):
        with pytest.raises(AssertionError, match="ended after 2 tokens"):
            await streams.begin(prompt_tokens=1, most=9).reach(9)

    against(Scripted([0, 1], ends=True), work)


# ---- the whole


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_on_a_real_cluster_measures_every_mode():
    told = measure(Plan(contexts=(128,), samples=2, recomputed=1))
    assert told.figures["live_samples_128"] >= 2 and told.figures["recompute_samples_128"] >= 1
    assert told.figures["recompute_p50_ms_128"] > 0 and told.figures["live_itl_ms_128"] > 0
