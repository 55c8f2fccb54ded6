"""Every parameter survives moves and resumption: what it looks at is derived from the tokens wherever they are."""

import asyncio

import pytest
import torch
from bare_router import Stream, until
from test_instance_server import at, prompt, running, server, settled

from penstock.benchmarks.compare import compare_shaped
from penstock.benchmarks.held import CONSTRAINTS, Text
from penstock.benchmarks.plain import Asked
from penstock.benchmarks.reference import Reference
from penstock.engine.checkpoint import read_checkpoint
from penstock.engine.config import EngineConfig
from penstock.handover.values import Logprobs, MoveMode

LENGTH = 100
SHAPES = {
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.3, "logit_bias": ((20, -100.0), (33, 2.0))},
    "filters": {"top_p": 0.9, "top_k": 60, "min_p": 0.01, "choice": 2},
    "stops": {"stop_token_ids": tuple(range(258, 322)), "min_tokens": 60},
    "held": {"grammar": CONSTRAINTS[0].grammar, "ignore_eos": False},
    "told": {"logprobs": 3, "prompt_logprobs": 2},
    "plain": {"temperature": 0.0},
}
AHEAD = ("filters", "stops", "told", "plain")
"""Those whose next step does not wait for the host to have their tokens."""


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(EngineConfig().folder)


@pytest.mark.parametrize(
    ("overlap", "names"), [("off", tuple(SHAPES)), ("on", AHEAD)], ids=["one step at a time", "one ahead"]
)
def test_moved_and_resumed_streams_are_those_of_transformers(reference, overlap, names):
    contexts = {
        name: prompt(40 + 90 * number, number, max_tokens=LENGTH, **shape)
        for number, (name, shape) in enumerate(SHAPES.items())
        if name in names
    }

    async def main():
        prefill = server("prefill", slots=0, overlap=overlap)
        left, right = (server(name, overlap=overlap) for name in ("left", "right"))
        async with running(prefill, left, right) as router:
            for name, context in contexts.items():
                router.start(name, context, at(prefill), at(left))
            moving = [router.streams[name] for name in contexts]
            for least, mode in ((5, MoveMode.LIVE), (25, MoveMode.BLOCKING), (40, MoveMode.LIVE)):
                await until(lambda: all(settled(stream) > least for stream in moving))  # noqa: B023
                for stream in moving:
                    to = right if stream.session.owner == left.me else left
                    router.move(stream.session.key, at(to), mode)
            await ended(router)
            assert all(sum(stream.moves) >= 2 for stream in moving)
            whole = dict(router.streams)
            for name, stream in whole.items():
                resumed = prompt(1, **SHAPES[name])
                resumed = type(resumed)(stream.context.prompt, tuple(stream.ids[:33]), stream.context.params)
                router.start(f"again-{name}", resumed, at(prefill), at(right))
            await ended(router)
            for name, stream in whole.items():
                again = router.streams[f"again-{name}"]
                assert again.ids == stream.ids
                assert not any(record.prompt for record in (*again.records, *stream.records[1:]))
            return whole

    streams = asyncio.run(main())
    spec = read_checkpoint(EngineConfig().folder)
    text = Text(EngineConfig().folder, spec.vocab, spec.eos)
    for stream in streams.values():
        masks = text.masks(CONSTRAINTS[0], stream.ids) if stream.context.params.grammar else None
        asked = Asked(stream.context.params, stream.context.prompt, spec.eos, masks)
        logits = reference.logits(stream.context.prompt, stream.ids)
        found = compare_shaped(stream.ids, logits, asked)
        assert found.mismatched == 0 and found.ties <= 1
    assert len(streams["stops"].ids) < LENGTH
    check_logprobs(streams["told"], reference)


def test_recovered_streams_are_those_of_an_undisturbed_run():
    """Twice: from the decode side, in mid-stream, and again from where they were recovered."""
    contexts = {
        name: prompt(40 + 90 * number, number, max_tokens=LENGTH, **shape)
        for number, (name, shape) in enumerate(SHAPES.items())
    }

    async def main():
        prefill, left, right = server("prefill", slots=0), server("left"), server("right")
        async with running(prefill, left, right) as router:
            for name, context in contexts.items():
                router.start(f"still-{name}", context, at(left))
                stream = router.start(name, context, at(prefill), at(left))
                stream.again = at(prefill), at(right)
            streams = [router.streams[name] for name in contexts]
            for least, lost in ((8, left), (30, right)):
                await until(lambda: all(settled(stream) > least for stream in streams))  # noqa: B023
                router.lose(lost.me)
            await ended(router)
            return dict(router.streams)

    streams = asyncio.run(main())
    for name in contexts:
        stream, still = streams[name], streams[f"still-{name}"]
        assert stream.recoveries == 2 and not still.recoveries
        assert stream.ids == still.ids
        for record, undisturbed in zip(stream.records, still.records, strict=True):
            assert record.end == undisturbed.end
            assert_alike(record.logprobs, undisturbed.logprobs)
            for told, expected in zip(record.prompt, undisturbed.prompt, strict=True):
                assert_alike(told, expected)


def assert_alike(told: Logprobs | None, expected: Logprobs | None) -> None:
    """What recomputation rounds otherwise differs in the last digits."""
    assert (told is None) == (expected is None)
    if told is not None and expected is not None:
        assert abs(told.own - expected.own) < 1e-4
        values = zip((value for _, value in told.top), (value for _, value in expected.top), strict=True)
        assert all(abs(value - other) < 1e-4 for value, other in values)


async def ended(router) -> None:
    await until(lambda: all(stream.session.closed for stream in router.streams.values()), 60)


def check_logprobs(stream: Stream, reference: Reference) -> None:
    context = stream.context
    told = [*stream.records[0].prompt, *(record.logprobs for record in stream.records)]
    tokens = [*context.prompt, *stream.ids]
    logits = reference.logits(tokens[:1], tokens[1:])
    assert len(told) == len(tokens) - 1 == len(logits)
    for place, (logprobs, row) in enumerate(zip(told, logits, strict=True)):
        top = 2 if place < len(context.prompt) - 1 else 3
        check_one(logprobs, torch.log_softmax(row.double(), -1), tokens[place + 1], top)


def check_one(told: Logprobs, expected: torch.Tensor, token: int, top: int) -> None:
    assert abs(told.own - float(expected[token])) < 1e-4
    values = [value for _, value in told.top]
    assert len(values) == top
    assert torch.allclose(torch.tensor(values).double(), expected.topk(top).values, rtol=0, atol=1e-4)
    assert all(abs(value - float(expected[id])) < 1e-4 for id, value in told.top)
