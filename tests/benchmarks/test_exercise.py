"""What the exercise hears at the wire: each token once, and what came twice, never, or was cut off."""

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
import pytest

from penstock.benchmarks.exercise import MOVE_TOKENS, Stream, exercise
from penstock.benchmarks.trials import Trial
from penstock.handover.values import Logprobs, SamplingParams
from penstock.proto import control_pb2, inference_pb2
from penstock.proto.control_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server
from penstock.proto.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server


def trial(max_tokens=10, moves=(), cancel_after=None, **more) -> Trial:
    return Trial("r", (1, 2, 3), max_tokens, 0.0, 9, tuple(moves), cancel_after, **more)


def delta(first: int, *ids: int, maker="decode-0", choice=0) -> inference_pb2.GenerateResponse:
    made = inference_pb2.Delta(first_index=first, token_ids=ids, instance=maker, choice=choice)
    return inference_pb2.GenerateResponse(delta=made)


def finished(reason, choice=0) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(finished=inference_pb2.Finished(choice=choice, reason=reason))


class ScriptedRouter(InferenceServiceServicer, ControlServiceServicer):
    """Sends the deltas of `script`, and answers moves by `answer`."""

    def __init__(self, script, answer: Callable[[control_pb2.MigrateRequestRequest], control_pb2.Move]):
        self.script = script
        self.answer = answer
        self.moved: list[str] = []
        self.choices: list[int] = []
        self.asked = asyncio.Semaphore(0)
        self.left = asyncio.Event()

    async def Generate(self, request, context):
        try:
            for item in self.script:
                if callable(item):
                    await item(self)
                elif isinstance(item, grpc.StatusCode):
                    await context.abort(item, "as the script says")
                else:
                    yield item
        finally:
            self.left.set()

    async def MigrateRequest(self, request, context):
        self.moved.append(request.destination)
        self.choices.append(request.choice)
        self.asked.release()
        return control_pb2.MigrateRequestResponse(moves=[self.answer(request)])


def run(script, one: Trial, done=True) -> tuple[Stream, ScriptedRouter]:
    (stream,), router = run_all(script, one, done)
    return stream, router


def run_all(script, one: Trial, done=True) -> tuple[list[Stream], ScriptedRouter]:
    async def main():
        router = ScriptedRouter(script, lambda request: control_pb2.Move(done=done, reason="no room"))
        server = grpc.aio.server()
        add_InferenceServiceServicer_to_server(router, server)
        add_ControlServiceServicer_to_server(router, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            streams = await exercise(f"127.0.0.1:{port}", [one], ["decode-0", "decode-1"], 4)
        finally:
            await server.stop(0)
        return streams, router

    return asyncio.run(asyncio.wait_for(main(), 20))


async def until_moved(router: ScriptedRouter) -> None:
    """The script goes on once one more move was asked for, and its answer is on the way."""
    await router.asked.acquire()
    await asyncio.sleep(0.1)


def test_a_whole_stream_lacks_nothing():
    stream, _ = run([delta(0, 5), delta(1, 6, 7, 8), delta(4, 9)], trial(5))
    assert stream.tokens == [5, 6, 7, 8, 9]
    assert (stream.duplicated, stream.missing, stream.cancelled, stream.troubles) == (0, 0, False, [])


def test_tokens_that_come_twice_are_counted_and_kept_once():
    stream, _ = run([delta(0, 5, 6), delta(0, 5, 6), delta(1, 6, 7)], trial(3))
    assert stream.tokens == [5, 6, 7]
    assert (stream.duplicated, stream.missing) == (3, 0)


def test_nothing_after_a_gap_counts_as_there():
    stream, _ = run([delta(0, 5, 6), delta(3, 8, 9)], trial(5))
    assert stream.tokens == [5, 6]
    assert stream.missing == 3


@pytest.mark.parametrize("end", [[], [grpc.StatusCode.INTERNAL]])
def test_a_stream_that_ends_early_lacks_its_rest(end):
    stream, _ = run([delta(0, 5, 6), *end], trial(10))
    assert (stream.missing, stream.cancelled) == (8, False)
    assert len(stream.troubles) == len(end)


def test_a_client_that_leaves_is_heard_by_the_router_and_lacks_nothing():
    async def for_ever(router: ScriptedRouter) -> None:
        await asyncio.Event().wait()

    stream, router = run([delta(0, 5, 6), delta(2, 7, 8), for_ever], trial(10, cancel_after=3))
    assert router.left.is_set()
    assert stream.tokens == [5, 6, 7, 8]
    assert (stream.missing, stream.cancelled) == (0, True)


def test_a_client_that_leaves_still_lacks_what_was_skipped():
    stream, _ = run([delta(0, 5), delta(2, 7), delta(1, 6)], trial(10, cancel_after=2))
    assert (stream.tokens, stream.cancelled, stream.missing) == ([5, 6], True, 1)


def test_moves_are_asked_for_when_their_token_comes_and_lead_elsewhere():
    script = [delta(0, 5), until_moved, delta(1, 6, maker="decode-1"), until_moved, delta(2, 7)]
    stream, router = run(script, trial(3, moves=(0, 1)))
    assert router.moved == ["decode-1", "decode-0"]
    assert (stream.moves_done, stream.moves_aborted) == (2, 0)


@pytest.mark.parametrize("more", [MOVE_TOKENS - 2, MOVE_TOKENS - 1])
def test_a_move_that_is_not_done_is_aborted_or_late_where_the_stream_was_about_to_end(more):
    script = [delta(0, 5), until_moved, delta(1, *[6] * more)]
    stream, _ = run(script, trial(1 + more, moves=(0, 1 + more)), done=False)
    assert stream.troubles == ["not moved to decode-1: no room"]
    late = 1 + (1 + more < MOVE_TOKENS)
    assert (stream.moves_done, stream.moves_late, stream.moves_aborted) == (0, late, 2 - late)


def test_a_move_that_the_client_does_not_wait_for_is_late():
    script = [delta(0, 5), until_moved, delta(1, 6, 7)]
    stream, _ = run(script, trial(100, moves=(0,), cancel_after=2), done=False)
    assert stream.cancelled and (stream.moves_late, stream.moves_aborted) == (1, 0)


def test_each_choice_is_heard_and_moved_by_itself():
    script = [
        delta(0, 5),
        until_moved,
        delta(0, 6, choice=1),
        delta(1, 8, choice=1),
        until_moved,
        delta(1, 7),
    ]
    (first, second), router = run_all(script, trial(2, moves=(0, 1), choices=2))
    assert (first.tokens, second.tokens) == ([5, 7], [6, 8])
    assert router.choices == [0, 1] and first.moves_done == second.moves_done == 1
    assert first.missing == second.missing == 0


def test_a_stop_token_ends_a_choice_early_and_an_early_end_without_one_lacks_the_rest():
    shape = SamplingParams(stop_token_ids=(6,))
    stop = inference_pb2.FINISH_REASON_STOP
    stream, _ = run([delta(0, 5, 6), finished(stop)], trial(10, moves=(8,), shape=shape))
    assert (stream.missing, stream.moves_aborted) == (0, 0)
    long = [delta(0, *[5] * 40, 6), finished(stop)]
    stream, _ = run(long, trial(100, moves=(0, 30), shape=shape), done=False)
    assert stream.moves_aborted == 1, "the second came too late"
    stream, _ = run([delta(0, 5, 7), finished(stop)], trial(10, shape=shape))
    assert stream.missing == 8


def test_log_probabilities_are_kept_beside_their_tokens_and_the_prompts_each_time():
    said = delta(0, 5, 6)
    said.delta.logprobs.add(logprob=-1.0).top.add(token_id=9, logprob=-0.5)
    said.delta.logprobs.add(logprob=-2.0)
    said.delta.prompt.logprobs.add(logprob=-3.0)
    stream, _ = run([said, said], trial(2))
    assert stream.logprobs == [Logprobs(-1.0, ((9, -0.5),)), Logprobs(-2.0)]
    assert stream.prompts == [(Logprobs(-3.0),)] * 2
