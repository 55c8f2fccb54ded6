"""One choice's output: where it ends and what its text is follow from the ids alone, however they come."""

import asyncio
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models
from toy_fleet import MODEL, ONE_AND_TWO, Heard, fleet, generate, request, until
from toy_instance import VOCABULARY, output

from penstock.handover.values import End, Logprobs, SamplingParams
from penstock.proto import inference_pb2 as pb
from penstock.proto.inference_pb2_grpc import InferenceServiceStub
from penstock.router.fleet import Delta
from penstock.router.output import Output
from penstock.router.tokenizer import Tokenizer
from penstock.router.wire import Call


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A tokenizer whose token 12 reads `<12>`, so that a stop string may lie across a border."""
    path = tmp_path_factory.mktemp("numbers") / "tokenizer.json"
    encoder = Encoder(models.WordLevel({f"<{id}>": id for id in range(VOCABULARY)}, unk_token="<0>"))
    encoder.decoder = decoders.Fuse()
    encoder.save(str(path))
    return path


def read(ids) -> str:
    return "".join(f"<{id}>" for id in ids)


def call(stop=(), received=(), **params) -> Call:
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True} | params)
    return Call("r", 1, (1, 2, 3), params, tuple(received), tuple(stop))


def drive(whole: Output, ids, cuts=()):
    """Feed the ids, cut into deltas; returns ids and text that the client gets."""
    got, text = [], ""
    edges = sorted({whole.tokens, len(ids), *(cut for cut in cuts if whole.tokens < cut < len(ids))})
    for a, b in zip(edges, edges[1:], strict=False):
        end = End.LENGTH if b == len(ids) else None
        piece = whole.take(Delta(a, tuple(ids[a:b]), "x", end))
        got += piece.token_ids
        text += piece.text
        if whole.end is not None:
            break
    return got, text


STOPS = st.lists(st.sampled_from(["1><2", "<3>", "3><1", "2", "<1><1><1>"]), max_size=3, unique=True)


@settings(deadline=None)
@given(
    ids=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    stop=STOPS,
    cuts=st.lists(st.integers(1, 11), max_size=4),
    resumed=st.integers(0, 12),
    min_tokens=st.sampled_from([0, 0, 3]),
)
def test_a_resumed_output_goes_on_as_if_nothing_had_been(numbers, ids, stop, cuts, resumed, min_tokens):
    tokenizer = Tokenizer(numbers)
    asked = call(stop, min_tokens=min_tokens)
    whole = Output(asked, (), tokenizer)
    got, text = drive(whole, ids, cuts)
    assert got == ids[: whole.tokens]
    assert whole.end is (End.STOP if whole.tokens < 12 or text != read(ids) else End.LENGTH)
    first = Output(asked, (), tokenizer)
    resumed = min(resumed, whole.tokens)
    had, shown = drive(first, ids, range(12)) if resumed == whole.tokens else half(first, ids[:resumed])
    again = Output(replace(asked, received=tuple(ids[:resumed])), (), tokenizer)
    if resumed == whole.tokens:
        assert (again.end, again.tokens, shown) == (whole.end, whole.tokens, text)
    else:
        more, rest = drive(again, ids, cuts)
        assert had + more == got and shown + rest == text
        assert (again.end, again.tokens) == (whole.end, whole.tokens)


def half(first: Output, ids):
    if not ids:
        return [], ""
    piece = first.take(Delta(0, tuple(ids), "x", None))
    return list(piece.token_ids), piece.text


def test_a_stop_string_across_a_border_ends_the_text_before_it_and_the_tokens_with_it(numbers):
    whole = Output(call(["2><3"]), (), Tokenizer(numbers))
    got, text = drive(whole, [1, 2, 3, 4, 5])
    assert (got, text, whole.end, whole.tokens) == ([1, 2, 3], "<1><", End.STOP, 3)


def test_text_that_only_begins_a_stop_string_comes_with_the_end(numbers):
    whole = Output(call(["2><9"], max_tokens=2), (), Tokenizer(numbers))
    assert drive(whole, [1, 2], range(3)) == ([1, 2], "<1><2>") and whole.end is End.LENGTH


def test_a_stop_string_ends_the_stream_and_frees_the_owner(numbers):
    async def run():
        model = replace(MODEL, tokenizer=numbers)
        async with fleet(ONE_AND_TWO, model=model) as here:
            ids = output((1, 2, 3), 1000)
            stop = f"{ids[20]}><{ids[21]}"
            asked = request(max_tokens=1000, sampling={"stop": [stop]})
            heard = await generate(here.address, asked)
            assert heard.ids == ids[:22] and heard.text == read(ids[:20]) + "<"
            assert heard.finished.reason == pb.FINISH_REASON_STOP
            assert heard.finished.usage.completion_tokens == 22
            await here.settled()  # though the instance was far from its 1,000 tokens

    asyncio.run(run())


# ---- several choices


class Choices:
    """What a client heard of each choice."""

    def __init__(self, firsts=()):
        self.heard = {choice: Heard(first=first) for choice, first in firsts}
        self.order = []
        self.started = None

    def of(self, choice) -> Heard:
        return self.heard.setdefault(choice, Heard())

    def take(self, response):
        kind = response.WhichOneof("event")
        if kind == "started":
            assert self.started is None
            self.started = response.started
            return
        choice = getattr(response, kind).choice
        heard = self.of(choice)
        heard.started = self.started
        heard.take(response)
        self.order.append(choice)


async def ask(address, asked, heard=None) -> Choices:
    heard = heard or Choices()
    async with grpc.aio.insecure_channel(address) as channel:
        async for response in InferenceServiceStub(channel).Generate(asked, timeout=20):
            heard.take(response)
    return heard


def test_choices_come_interleaved_and_each_ends_once():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            said = await ask(here.address, request(max_tokens=60, sampling={"n": 3}))
            for choice in range(3):
                heard = said.of(choice)
                assert heard.ids == output((1, 2, 3), 60, choice=choice)
                assert heard.finished.usage.completion_tokens == 60
            assert sorted(said.order[:30]) != said.order[:30], "none waits for another to end"

    asyncio.run(run())


def test_choices_are_resumed_where_each_of_them_was():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            wholes = [output((1, 2, 3), 40, seed=5, choice=choice) for choice in range(3)]
            had = [7, 40, 0]
            received = [
                pb.ChoiceTokens(choice=choice, token_ids=wholes[choice][: had[choice]]) for choice in (1, 0)
            ]
            resume = pb.Resume(attempt=2, seed=5, received=received)
            asked = request(max_tokens=40, request_id="r", resume=resume, sampling={"seed": None, "n": 3})
            said = await ask(here.address, asked, Choices(enumerate(had)))
            for choice in range(3):
                assert said.of(choice).ids == wholes[choice][had[choice] :]
                assert said.of(choice).finished.usage.completion_tokens == 40

    asyncio.run(run())


def test_a_later_attempt_takes_over_all_choices():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            first = Choices()
            asked = request(max_tokens=300, request_id="r", sampling={"n": 2, "seed": 5})
            task = asyncio.create_task(ask(here.address, asked, first))
            await until(lambda: all(first.of(choice).ids for choice in range(2)))
            asked.resume.attempt, asked.resume.seed = 2, 5
            second = await ask(here.address, asked)
            assert [second.of(choice).ids for choice in range(2)] == [
                output((1, 2, 3), 300, seed=5, choice=choice) for choice in range(2)
            ]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await task
            assert caught.value.code() is grpc.StatusCode.ABORTED

    asyncio.run(run())


def test_a_client_that_leaves_frees_all_choices():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            said = Choices()
            task = asyncio.create_task(ask(here.address, request(max_tokens=2000, sampling={"n": 4}), said))
            await until(lambda: all(said.of(choice).ids for choice in range(4)))
            task.cancel()
            await here.settled()

    asyncio.run(run())


# ---- log-probabilities and the prompt


def told(*ids) -> tuple[Logprobs, ...]:
    return tuple(Logprobs(-float(id), ((id, -float(id)),)) for id in ids)


def test_log_probabilities_come_with_their_tokens_and_end_with_them(numbers):
    whole = Output(call(["2><3"]), (), Tokenizer(numbers))
    piece = whole.take(Delta(0, (1, 2, 3, 4), "x", None, told(1, 2, 3, 4)))
    assert piece.token_ids == (1, 2, 3) and piece.logprobs == told(1, 2, 3)


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 1}, {}])
@pytest.mark.parametrize("echo", [True, False])
def test_the_prompt_is_told_of_once_and_only_where_asked_for(asked, echo):
    wanted = replace(call(**asked), echo=echo)
    whole = Output(wanted, (), None)
    first = whole.take(Delta(0, (1,), "x", None, (), told(2, 3) if asked else ()))
    second = whole.take(Delta(1, (2,), "x", None))
    assert first.prompt_logprobs == ((told(2, 3) if asked else ()) if asked or echo else None)
    assert second.prompt_logprobs is None
    resumed = Output(replace(wanted, received=(1,)), (), None)
    assert resumed.take(Delta(1, (2,), "x", None)).prompt_logprobs is None


def test_an_echo_gives_back_the_prompt_with_choice_0_alone(numbers):
    async def run():
        async with fleet(ONE_AND_TWO, model=replace(MODEL, tokenizer=numbers)) as here:
            asked = request((5, 6, 7), sampling={"n": 2, "echo": True})
            async with grpc.aio.insecure_channel(here.address) as channel:
                stream = InferenceServiceStub(channel).Generate(asked, timeout=20)
                deltas = [said.delta async for said in stream if said.HasField("delta")]
            (prompt,) = [delta.prompt for delta in deltas if delta.HasField("prompt")]
            assert (list(prompt.token_ids), prompt.text) == ([5, 6, 7], "<5><6><7>")
            (first,) = [delta for delta in deltas if delta.HasField("prompt")]
            assert (first.choice, first.first_index) == (0, 0)

    asyncio.run(run())
