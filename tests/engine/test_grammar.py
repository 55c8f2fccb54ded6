"""A grammar's state follows from the tokens alone, and outputs that it rules match it."""

import json
import re

import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer
from toy_world import BLOCK, CONTEXT, LAYOUT, ROUTER, Clock, World

from penstock.engine import grammar as module
from penstock.engine.config import EngineConfig
from penstock.engine.grammar import Grammars
from penstock.engine.outside import Limits
from penstock.engine.sampler import sample
from penstock.engine.sequence import Sequence
from penstock.engine.shaping import shape_
from penstock.engine.step import SampleSpec, Shaping
from penstock.handover.config import HandoverConfig
from penstock.handover.effects import Adopt, Lease
from penstock.handover.values import (
    GRAMMAR_LIMITS,
    Commit,
    Context,
    End,
    Epoch,
    Incarnation,
    LeaseKey,
    Reserve,
    SamplingParams,
    TokenRecord,
)
from penstock.policy.batching import Budget
from penstock.router.grammar_check import convert

FOLDER = EngineConfig().folder
VOCABULARY = 4096
ENDS = frozenset({0})
REGEX = LLMatcher.grammar_from_regex(r"[a-c]{2,5}(-[0-9]{1,3})?")
SCHEMA = LLMatcher.grammar_from_json_schema(
    '{"type": "object", "properties": {"name": {"enum": ["x", "y"]}, "n": {"type": "integer", "minimum": 3}},'
    ' "required": ["name", "n"], "additionalProperties": false}',
    overrides={"whitespace_flexible": False},
)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def begin(grammars, grammar, emitted=(), seed=0, **params) -> Sequence:
    asked = SamplingParams(temperature=1.5, seed=seed, max_tokens=30, grammar=grammar, **params)
    constraint = grammars.begin(grammar, emitted)
    return Sequence.begin("s", Epoch(1, 1), Context((5,), tuple(emitted), asked), 1000, ENDS, constraint)


def logits(position: int, seed: int) -> torch.Tensor:
    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1000 * seed + position))


def generate(sequence: Sequence, seed: int) -> End | None:
    while True:
        (token,) = sample(logits(sequence.made, seed), [sequence.sample_spec()]).tolist()
        end = sequence.append(token).end
        if end is not None:
            return end


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grammar", [REGEX, SCHEMA], ids=["regex", "schema"])
def test_every_output_matches_and_is_the_same_resumed_anywhere(grammars, text, grammar, seed):
    whole = begin(grammars, grammar, seed=seed)
    end = generate(whole, seed)
    output = whole.tokens[1:]
    assert (end is End.STOP) == (output[-1] in ENDS)
    said = text.decode([id for id in output if id not in ENDS])
    if end is End.STOP and grammar is REGEX:
        assert re.fullmatch(r"[a-c]{2,5}(-[0-9]{1,3})?", said)
    elif end is End.STOP:
        assert json.loads(said)["n"] >= 3 and json.loads(said)["name"] in "xy"
    assert end is End.STOP or len(output) == 30
    for cut in {0, len(output) // 3, len(output) - 1}:
        resumed = begin(grammars, grammar, output[:cut], seed)
        assert generate(resumed, seed) is end and resumed.tokens == whole.tokens


def test_where_a_grammar_allows_nothing_more_only_an_end_token_comes(grammars, text):
    sequence = begin(grammars, LLMatcher.grammar_from_regex("yes"))
    ids = text.encode("yes", add_special_tokens=False).ids
    assert [sequence.append(id).end for id in ids] == [None] * len(ids)
    (token,) = sample(logits(0, 0), [sequence.sample_spec()]).tolist()
    assert token in ENDS and sequence.append(token).end is End.STOP


def allowed_by(constraint) -> list[int]:
    mask = constraint.allowed()
    return [id for id in range(VOCABULARY) if mask[id >> 3] >> (id & 7) & 1]


def test_a_mask_leaves_its_tokens_alone():
    row = torch.zeros(2, 20)
    mask = bytes([0b00000101, 0b00000010])
    shape_(row, [SampleSpec(0, 0, 0, 0, Shaping(SamplingParams(), allowed=mask)), SampleSpec(0, 0, 0, 0)])
    assert (row[0] == 0).nonzero().flatten().tolist() == [0, 2, 9]
    assert (row[1] == 0).all()


def test_the_latest_grammars_are_kept(grammars, monkeypatch):
    few = Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)
    monkeypatch.setattr(module, "KEPT", 3)
    for number in range(8):
        few.prepare(LLMatcher.grammar_from_regex(f"a{number}"))
    assert len(few._compiled) == 3
    assert few.begin(LLMatcher.grammar_from_regex("a0"), ()).allowed()


def test_a_use_counts_as_late():
    few = Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)
    first, second = (LLMatcher.grammar_from_regex(text) for text in "ab")
    few.prepare(first)
    few.prepare(second)
    few.begin(first, ())
    assert list(few._compiled) == [second, first]


@pytest.mark.parametrize("value", ["yes", 'déjà "vu" \n', "a\\b/"])
def test_each_choice_is_allowed_to_its_end_and_nothing_else(grammars, text, value):
    grammar = convert({"kind": "choices", "values": ["yes", 'déjà "vu" \n', "a\\b/"]})
    ids = text.encode(value, add_special_tokens=False).ids
    assert text.decode(ids) == value
    constraint = grammars.begin(grammar, ())
    for id in ids:
        assert id in allowed_by(constraint)
        constraint.take(id)
    assert allowed_by(constraint) == list(ENDS)


def test_what_others_learnt_of_a_grammar_changes_nothing(monkeypatch, text):
    rich = LLMatcher.grammar_from_regex("(.*a.{20}b.*|[a-z ]*q)x")
    ample = Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)
    monkeypatch.setitem(GRAMMAR_LIMITS, "max_lexer_states", 1200)
    few = Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)
    compiled, compile_ = [], Grammars._compile
    monkeypatch.setattr(
        Grammars, "_compile", lambda self, grammar: compiled.append(grammar) or compile_(self, grammar)
    )
    words = ["bac ab", "zaab", " quax a", "déjà", "ba\n", "xyzzy a b"]
    for seed in range(6):
        ids = text.encode(" ".join(words[seed:] + words[:seed]) * 2, add_special_tokens=False).ids
        constraint = few.begin(rich, ())
        for place, id in enumerate(ids):
            mask = constraint.allowed()
            with monkeypatch.context() as roomy:
                roomy.setitem(GRAMMAR_LIMITS, "max_lexer_states", 10**6)
                if place == 0:
                    expected = ample.begin(rich, ())
                assert mask == expected.allowed()
            if not mask[id >> 3] >> (id & 7) & 1:
                break
            constraint.take(id)
            expected.take(id)
    assert len(compiled) > 2, "the limit was met"


@pytest.mark.parametrize("seen", [0, 2])
def test_a_reservation_keeps_its_grammar_however_many_others_come_before_it_is_adopted(
    text, monkeypatch, seen
):
    monkeypatch.setattr(module, "KEPT", 1)
    few = Grammars(FOLDER / "tokenizer.json", VOCABULARY, ENDS)
    engine = World(1, {"b": Budget(12, 6)}, HandoverConfig(), Clock()).instances["b"].engine
    moving = engine._moving
    moving._limits = Limits(CONTEXT, ENDS, BLOCK, 1 << 20, few)
    ids = text.encode("abc-12", add_special_tokens=False).ids
    told, lease = Context((5,), tuple(ids[:2]), SamplingParams(grammar=REGEX)), LeaseKey("s", Epoch(1, 2))
    here, there = Incarnation("b", 1), Incarnation("a", 1)
    moving.carry_out("s", Lease(Reserve(lease, there, here, "toy", LAYOUT, 4, told, ROUTER, False)))
    expected = few.begin(REGEX, ids[:3]).allowed()
    few.prepare(SCHEMA)
    monkeypatch.setattr(few, "_compile", lambda grammar: pytest.fail("compiled in the engine thread"))
    records = tuple(TokenRecord(id) for id in ids[seen:3])
    moving.carry_out("s", Adopt(lease, Commit(seen, records, 3)))
    (adopted,) = engine._scheduler
    assert adopted.tokens == [5, *ids[:3]] and adopted.constraint.allowed() == expected


ASTRAY = {
    "lexer": LLMatcher.grammar_from_regex("p{40}(.{1,500}){1,500}z"),
    "parser": LLMatcher.grammar_from_lark(
        'start: "pqpq" e\ne: e e e e | e e e | e e | "a" | "b" | "ab" | ""'
    ),
}


@pytest.mark.parametrize("grammar", ASTRAY.values(), ids=ASTRAY)
def test_an_output_whose_grammar_cannot_be_followed_never_ends_as_if_it_matched(grammars, grammar):
    """However it is resumed."""
    bias = ((0, -100.0),)
    whole = begin(grammars, grammar, logit_bias=bias)
    whole.most = 1000
    assert generate(whole, 0) is End.ASTRAY
    for cut in (0, whole.made // 2, whole.made - 1):
        resumed = begin(grammars, grammar, whole.tokens[1 : 1 + cut], logit_bias=bias)
        resumed.most = 1000
        assert generate(resumed, 0) is End.ASTRAY and resumed.made == whole.made
