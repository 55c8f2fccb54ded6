"""Constraints that verify asks for: a text that satisfies one is told from one that does not."""

import json

import pytest
from llguidance import LLMatcher

from penstock.benchmarks.held import CONSTRAINTS, Text
from penstock.engine.config import EngineConfig
from penstock.engine.grammar import Grammars

FOLDER = EngineConfig().folder
ENDS = frozenset({1})
ROW = {"name": "ab", "colour": "red", "size": 7}
GOOD = {
    "regex": "abc " * 20 + "end",
    "json_schema": json.dumps([ROW] * 6, separators=(",", ":")),
    "choices": "deep blue",
    "grammar": "1+(2*3)" + "+5" * 9 + ".",
}
BAD = {
    "regex": ("abc " * 19 + "end", "abc " * 20),
    "json_schema": ("[", "{}", "[[]]", "6", json.dumps([ROW] * 5), json.dumps([ROW | {"size": 2}] * 6)),
    "choices": ("deep", "red "),
    "grammar": ("1+2.", "1" + "+2" * 10, "1" + "+2" * 41 + "."),
}


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(FOLDER, 4096, ENDS)


def encode(text: Text, words: str) -> list[int]:
    return text._decoder.encode(words, add_special_tokens=False).ids


@pytest.mark.parametrize("held", CONSTRAINTS, ids=lambda held: held.kind)
def test_texts_are_told_apart(text, held):
    good = encode(text, GOOD[held.kind])
    assert text.satisfies(held, good) and text.satisfies(held, [*good, 1])
    for words in BAD[held.kind]:
        assert not text.satisfies(held, encode(text, words)), words


@pytest.mark.parametrize("held", CONSTRAINTS, ids=lambda held: held.kind)
def test_masks_are_those_that_the_engine_goes_by(text, held):
    output = encode(text, GOOD[held.kind])
    masks = text.masks(held, output)
    grammars = Grammars(FOLDER / "tokenizer.json", 4096, ENDS)
    for place, token in enumerate(output):
        allowed = grammars.begin(held.grammar, output[:place]).allowed()
        bits = [allowed[id >> 3] >> (id & 7) & 1 for id in range(4096)]
        assert masks[place].tolist() == list(map(bool, bits)) and bits[token]


@pytest.mark.parametrize("held", CONSTRAINTS, ids=lambda held: held.kind)
def test_every_constraint_compiles(held):
    assert LLMatcher.validate_grammar(held.grammar) == ""
