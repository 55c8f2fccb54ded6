"""Tells whether grammars can be compiled, in a process of its own, which dies where one takes too much.

One JSON object a line: {"kind", "text"} or {"kind": "choices", "values"} comes in, {"grammar", "error"} goes out.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..handover.values import GRAMMAR_LIMITS

MEMORY_BYTES = 4 << 30
CHECK_CPU_S = 1.0
"""CPU time of one check, at most."""
WALKS = 2
"""Outputs that are tried."""
STEPS = 128
"""Tokens of each, at most."""
WALKS_CPU_S = 0.4
"""CPU time of all of them, at most: these are a few milliseconds a token."""
SLOWEST_STEP_S = 0.1
"""CPU time of one of them, at most."""
LONGEST_ERROR = 200
"""Characters of what is said of a constraint, at most."""
CUT = " ... "
UNMATCHABLE = "NoExtensionBias"
"""All that llguidance says of an expression that no text matches."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="penstock-grammar-check")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("vocabulary", type=int)
    parser.add_argument("ends", type=int, nargs="+")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    text = options.tokenizer.read_text()
    tokenizer = LLTokenizer(text, n_vocab=options.vocabulary, eos_token=options.ends)
    _say({"ready": True})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CHECK_CPU_S)  # its signal ends the process, in native code too
        grammar = convert(json.loads(line))
        answer = {"grammar": grammar, "error": fault(grammar, tokenizer)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def convert(asked: dict[str, Any]) -> str:
    """The constraint in llguidance's own form."""
    match asked:
        case {"kind": "json_schema", "text": schema}:
            return LLMatcher.grammar_from_json_schema(schema)
        case {"kind": "regex", "text": regex}:
            return LLMatcher.grammar_from_regex(regex)
        case {"kind": "grammar", "text": grammar}:
            return LLMatcher.grammar_from_lark(grammar)
        case {"kind": "choices", "values": values}:
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, values)))
    raise AssertionError(f"unknown constraint {asked!r}")


def fault(grammar: str, tokenizer: LLTokenizer) -> str:
    """What is wrong with it, in a sentence; empty where the tokens of some outputs can be found quickly."""
    limits = LLParserLimits(verbose_errors=False, **GRAMMAR_LIMITS)
    until = time.process_time() + WALKS_CPU_S
    for walk in range(WALKS):
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        wrong = _sentence(matcher) if matcher.is_error() else _walk(matcher, tokenizer, walk, until)
        if wrong:
            return wrong
    return ""


def _walk(matcher: LLMatcher, tokenizer: LLTokenizer, seed: int, until: float) -> str:
    """What goes wrong on the way of an output drawn by this seed; empty where nothing does."""
    draw = random.Random(seed)
    for step in range(STEPS):
        began = time.process_time()
        mask = bytearray(matcher.compute_bitmask())
        took = time.process_time() - began
        if matcher.is_error():
            return _sentence(matcher)
        if took > SLOWEST_STEP_S or began > until:
            return "it is too complex: a token takes too long"
        for end in tokenizer.eos_tokens:
            mask[end >> 3] &= ~(1 << (end & 7)) & 255
        token = _next(mask, draw.randrange(len(mask)))
        if token is None:
            return "nothing matches it" if step == 0 and not matcher.is_accepting() else ""
        matcher.consume_token(token)
        if matcher.is_error():
            return _sentence(matcher)
        if matcher.is_stopped():
            return ""
    return ""


def _next(mask: bytearray, start: int) -> int | None:
    """A token whose bit is set, from this byte on and round."""
    turned = mask[start:] + mask[:start]
    skipped = len(turned) - len(turned.lstrip(b"\0"))
    if skipped == len(mask):
        return None
    byte = turned[skipped]
    return 8 * ((start + skipped) % len(mask)) + (byte & -byte).bit_length() - 1


def _sentence(matcher: LLMatcher) -> str:
    lines = matcher.get_error().replace("<non-verbose/>", "").splitlines()
    said = " ".join(
        line.strip() for line in lines if not line.startswith(" ")
    )  # indented ones quote the constraint
    return "nothing matches a part of it" if said == UNMATCHABLE else _cut(said)


def _cut(said: str) -> str:
    """In its middle, where constraints are quoted: what is wrong stands at either end."""
    half = (LONGEST_ERROR - len(CUT)) // 2
    return said if len(said) <= LONGEST_ERROR else f"{said[:half].rstrip()}{CUT}{said[-half:].lstrip()}"


if __name__ == "__main__":
    main()
