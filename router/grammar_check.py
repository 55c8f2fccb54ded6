"""Tells whether grammars can be compiled, in a process of its own, which dies where one takes too much.

One JSON object a line: {"kind", "text"} or {"kind": "choices", "values"} comes in, {"grammar", "error"} goes out.
"""

from __future__ import annotations

import argparse
import json
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
STEPS = 8
"""Tokens that are tried."""
SLOWEST_STEP_S = 0.1
"""CPU time of one of them, at most."""
LONGEST_ERROR = 300


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
    """What is wrong with it, in a sentence; empty where its first tokens can be found quickly."""
    limits = LLParserLimits(verbose_errors=False, **GRAMMAR_LIMITS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        return _sentence(matcher)
    ends = set(tokenizer.eos_tokens)
    for step in range(STEPS):
        began = time.process_time()
        tokens = [token for token in _tokens(matcher.compute_bitmask()) if token not in ends]
        if matcher.is_error():
            return _sentence(matcher)
        if time.process_time() - began > SLOWEST_STEP_S:
            return "it is too complex: a single token takes too long"
        if not tokens:
            return "nothing matches it" if step == 0 and not matcher.is_accepting() else ""
        matcher.consume_token(tokens[0])
        if matcher.is_stopped():
            return _sentence(matcher) if matcher.is_error() else ""
    return ""


def _tokens(mask: bytes) -> list[int]:
    return [8 * at + bit for at, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1]


def _sentence(matcher: LLMatcher) -> str:
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:LONGEST_ERROR]


if __name__ == "__main__":
    main()
