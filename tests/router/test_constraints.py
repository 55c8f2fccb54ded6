"""A constraint becomes a grammar, or is refused by name: in time, whatever it is, and without harm to the next."""

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from toy_fleet import MODEL

from penstock.engine.config import EngineConfig
from penstock.proto import inference_pb2 as pb
from penstock.router import constraints as module
from penstock.router.constraints import Constraints
from penstock.router.grammar_check import LONGEST_ERROR
from penstock.router.refusal import Refused
from penstock.router.tokenizer import Tokenizer
from penstock.router.wire import read_request

TOKENIZER = EngineConfig().folder / "tokenizer.json"
EMBEDDED = replace(MODEL, vocabulary=4096, tokenizer=TOKENIZER, end_tokens=(0,))
EXPLODING = "start: A\nA: " + " & ".join(
    f"/(.*{letter}.{{{i}}})*/" for i, letter in enumerate("abcdefghijklmnopqr", 7)
)
AMBIGUOUS = 'start: "pqpqpqpqpqpqpq" e\ne: e e e e | e e e | e e | "a" | "b" | "ab" | ""'
NESTED = "(" * 4 + "a" + "){100}" * 4


@asynccontextmanager
async def constraints(model=EMBEDDED):
    made = Constraints(model, model.tokenizer)
    try:
        yield made
    finally:
        await made.close()


def structured(kind, text) -> pb.StructuredOutput:
    return pb.StructuredOutput(**{kind: {"values": text} if kind == "choices" else text})


GOOD = [
    ("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
    ("regex", "[0-9]{3}-[a-z]+"),
    ("choices", ["yes", 'déjà "vu"\n', "a\\b"]),
    ("grammar", 'start: "a" start | "b"'),
]
BAD = [
    ("json_schema", "{"),
    ("json_schema", '{"type": "nonsense"}'),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 2}'),
    ("json_schema", '{"allOf": [{"type": "integer"}, {"type": "string"}]}'),
    ("json_schema", '{"$ref": "#"}'),
    ("json_schema", '{"$ref": "http://localhost/schema"}'),
    ("json_schema", '{"not": {"type": "string"}}'),
    ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    ("regex", "(a|b"),
    ("regex", "(?=a)b"),
    ("regex", r"[^\s\S]"),
    ("regex", NESTED),
    ("regex", "(.{1,500}){1,500}z"),
    ("grammar", AMBIGUOUS),
    ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    ("grammar", "start: nothing"),
    ("grammar", "nonsense"),
    ("grammar", EXPLODING),
    ("regex", "a" * 65_537),
    ("regex", ""),
    ("choices", []),
    ("choices", [""]),
    ("choices", ["a"] * 1025),
]


def test_sound_constraints_become_grammars():
    async def run():
        async with constraints() as made:
            grammars = [await made.grammar(structured(kind, text)) for kind, text in GOOD]
            assert len(set(grammars)) == len(GOOD) and all(grammars)
            assert await made.grammar(structured(*GOOD[0])) == grammars[0]

    asyncio.run(run())


def test_what_cannot_be_held_to_is_refused_by_name_and_in_time(monkeypatch):
    async def run():
        async with constraints() as made:
            for kind, text in BAD:
                await made.grammar(structured(*GOOD[1]))  # the process is there
                monkeypatch.setattr(module, "KEPT", 0)  # and answers anew
                began = time.monotonic()
                with pytest.raises(Refused) as refused:
                    await made.grammar(structured(kind, text))
                told = refused.value
                assert (told.code.name, told.field) == ("INVALID_ARGUMENT", f"sampling.structured.{kind}")
                assert told.message and "\n" not in told.message and len(told.message) < 500
                assert time.monotonic() - began < 10, (
                    "bounded; it takes a second at most where nothing else runs"
                )

    asyncio.run(run())


def test_a_refusal_is_a_sentence_where_nothing_matches():
    async def run():
        async with constraints() as made:
            with pytest.raises(Refused, match="nothing matches a part of it"):
                await made.grammar(structured("grammar", 'start: "abc" X\nX: /a/ & /b/'))

    asyncio.run(run())


QUOTED = [
    ("regex", "(ab" * 500, "unclosed group"),
    ("regex", "[" + "z" * 500, "unclosed character class"),
    ("grammar", 'start: "b"\n' + 'long: "z"\n' * 500, "duplicate rule"),
]


@pytest.mark.parametrize("kind, text, says", QUOTED, ids=[says for *_, says in QUOTED])
def test_a_refusal_says_what_is_wrong_and_does_not_quote_the_constraint_at_length(kind, text, says):
    async def run():
        async with constraints() as made:
            with pytest.raises(Refused, match=says) as refused:
                await made.grammar(structured(kind, text))
            error = refused.value.message.partition(f"`sampling.structured.{kind}`: ")[2].removesuffix(".")
            assert len(error) <= LONGEST_ERROR and "\n" not in error

    asyncio.run(run())


def test_a_check_that_is_given_up_is_not_the_next_ones_answer():
    async def run():
        async with constraints() as made:
            await made.grammar(structured(*GOOD[1]))
            waiting = asyncio.create_task(made.grammar(structured("grammar", EXPLODING)))
            await asyncio.sleep(0.1)
            waiting.cancel()
            assert "[a-f]" in await made.grammar(structured("regex", "[a-f]"))

    asyncio.run(run())


def test_the_end_waits_for_no_check(monkeypatch):
    monkeypatch.setattr(module, "EXIT_S", 0.05)

    async def run():
        made = Constraints(EMBEDDED, TOKENIZER)
        await made.grammar(structured(*GOOD[1]))
        process, _ = made._process, await made._turn.acquire()
        async with asyncio.timeout(module.CHECK_S):
            await made.close()
        assert process.returncode is not None and made._process is None

    asyncio.run(run())


def test_a_process_that_was_killed_is_started_anew():
    async def run():
        async with constraints() as made:
            await made.grammar(structured(*GOOD[1]))
            made._process.kill()
            assert "[a-f]" in await made.grammar(structured("regex", "[a-f]"))

    asyncio.run(run())


def test_a_process_that_is_killed_at_every_check_leaves_no_verdict():
    """It may be killed for others' memory: nothing is said of the constraint, and a later check answers."""

    async def run():
        async with constraints() as made:
            start = made._start

            async def killed(field):
                process = await start(field)
                process.kill()
                return process

            made._start = killed
            with pytest.raises(Refused) as refused:
                await made.grammar(structured("regex", "[a-f]"))
            assert refused.value.code.name == "RESOURCE_EXHAUSTED"
            made._start = start
            assert "[a-f]" in await made.grammar(structured("regex", "[a-f]"))

    asyncio.run(run())


@asynccontextmanager
async def one_that_hangs(made, monkeypatch):
    """A check that holds the turn until the end."""
    await made.grammar(structured(*GOOD[1]))
    os.kill(made._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(module, "CHECK_S", 60.0)
    hanging = asyncio.create_task(made.grammar(structured("regex", "[a-f]")))
    await asyncio.sleep(0)
    assert made._turn.locked()
    yield
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


@pytest.mark.parametrize("limit, value", [("MOST_WAITING", 0), ("WAIT_S", 0.05)])
def test_checks_do_not_queue_without_bound_or_end(monkeypatch, limit, value):
    async def run():
        async with constraints() as made, one_that_hangs(made, monkeypatch):
            monkeypatch.setattr(module, limit, value)
            with pytest.raises(Refused) as refused:
                await made.grammar(structured("regex", "[a-g]"))
            assert (refused.value.code.name, refused.value.field) == (
                "RESOURCE_EXHAUSTED",
                "sampling.structured.regex",
            )
            assert await made.grammar(structured(*GOOD[1])), "what is known waits for nobody"

    asyncio.run(run())


def test_answers_asked_for_again_are_kept_before_others(monkeypatch):
    async def run():
        monkeypatch.setattr(module, "KEPT", 2)
        async with constraints() as made:
            for regex in "abac":
                await made.grammar(structured("regex", regex))
            assert ['"a"' in line or '"c"' in line for line in made._answers] == [True, True]

    asyncio.run(run())


def test_a_check_that_gets_no_answer_in_time_is_no_fault_of_the_constraint(monkeypatch):
    async def run():
        async with constraints() as made:
            await made.grammar(structured(*GOOD[1]))
            os.kill(made._process.pid, signal.SIGSTOP)
            monkeypatch.setattr(module, "CHECK_S", 0.2)
            with pytest.raises(Refused) as refused:
                await made.grammar(structured("regex", "[a-f]"))
            assert refused.value.code.name == "RESOURCE_EXHAUSTED"
            monkeypatch.undo()
            assert "[a-f]" in await made.grammar(structured("regex", "[a-f]"))

    asyncio.run(run())


def test_a_tokenizer_that_does_not_serve_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    model = replace(EMBEDDED, tokenizer=tmp_path / "tokenizer.json")

    async def run():
        async with constraints(model) as made:
            with pytest.raises(Refused) as refused:
                await made.grammar(structured("regex", "a"))
            assert refused.value.code.name == "FAILED_PRECONDITION"

    asyncio.run(run())


@pytest.mark.parametrize(
    "sampling, code, field",
    [
        ({"structured": pb.StructuredOutput()}, "INVALID_ARGUMENT", "sampling.structured"),
        (
            {"structured": structured("regex", "a"), "ignore_eos": True},
            "INVALID_ARGUMENT",
            "sampling.ignore_eos",
        ),
        (
            {"structured": structured("regex", "a"), "min_tokens": 3},
            "INVALID_ARGUMENT",
            "sampling.min_tokens",
        ),
    ],
)
def test_conflicts_are_refused_by_name(sampling, code, field):
    async def run():
        async with constraints() as made:
            request = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=[1]), sampling=pb.SamplingParams(**sampling)
            )
            with pytest.raises(Refused) as refused:
                await read_request(request, EMBEDDED, Tokenizer(TOKENIZER), made)
            assert (refused.value.code.name, refused.value.field) == (code, field)

    asyncio.run(run())


def test_a_model_without_a_tokenizer_refuses_it():
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[1]), sampling=pb.SamplingParams(structured=structured("regex", "a"))
    )
    with pytest.raises(Refused) as refused:
        asyncio.run(read_request(request, MODEL, None))
    assert (refused.value.code.name, refused.value.field) == ("FAILED_PRECONDITION", "sampling.structured")


def test_a_model_without_end_tokens_refuses_it():
    async def run():
        model = replace(EMBEDDED, end_tokens=())
        async with constraints(model) as made:
            sampling = pb.SamplingParams(structured=structured("regex", "a"))
            request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), sampling=sampling)
            with pytest.raises(Refused) as refused:
                await read_request(request, model, Tokenizer(TOKENIZER), made)
            assert (refused.value.code.name, refused.value.field) == (
                "FAILED_PRECONDITION",
                "sampling.structured",
            )

    asyncio.run(run())
