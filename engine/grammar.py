"""Structured output: which tokens a grammar allows after those so far. Free of torch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ..handover.values import GRAMMAR_LIMITS

KEPT = 32
"""Compiled grammars that are kept at most."""
PARSER_GAVE_UP = "parser error: "
"""How llguidance begins to tell of what follows from the tokens alone, in lower case."""


class Constraint:
    """A grammar's state after the tokens of one output.

    Matchers of one compiled grammar share what they learnt of it, and fail once that is too much, whoever learnt it.
    A failure counts only where a newly compiled one fails too: so what is allowed follows from the tokens alone.
    """

    def __init__(self, grammars: Grammars, grammar: str, emitted: Sequence[int]):
        self._grammars = grammars
        self._grammar = grammar
        self._tokens = list(emitted)
        self._matcher = grammars.matcher(grammar, self._tokens)

    @property
    def lost(self) -> bool:
        """What is allowed cannot be told within the limits of a new matcher, be it even to end."""
        return self._matcher.is_error()

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit each, lowest first.

        These are the end tokens alone where the grammar allows nothing more, and where it is `lost`.
        """
        allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._renew()
            allowed = self._matcher.compute_bitmask()
        return allowed

    def take(self, token: int) -> None:
        """Go on after this token."""
        self._tokens.append(token)
        if not self._matcher.consume_token(token):
            self._renew()

    def _renew(self) -> None:
        """Compile anew and go through the tokens again, unless the parser gave up: that is nobody else's doing."""
        if not self._matcher.get_error().lower().startswith(PARSER_GAVE_UP):
            self._matcher = self._grammars.new_matcher(self._grammar, self._tokens)


class Grammars:
    """Grammars compiled for one tokenizer, the latest kept. Usable from several threads."""

    def __init__(self, tokenizer: Path, vocabulary: int, ends: frozenset[int]):
        """`tokenizer` is a `tokenizer.json`; `vocabulary` how many logits there are; `ends` are not empty."""
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def prepare(self, grammar: str) -> LLMatcher:
        """Compiled, which takes 1 ms as a rule and up to a second where it is not kept: not in the step thread."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        return self._compile(grammar)

    def begin(self, grammar: str, emitted: Sequence[int]) -> Constraint:
        """Its state after an output so far: a function of the two alone."""
        return Constraint(self, grammar, emitted)

    def matcher(self, grammar: str, tokens: Sequence[int]) -> LLMatcher:
        """One that has gone through these tokens."""
        matcher = self.prepare(grammar).deep_copy()
        return matcher if matcher.consume_tokens(list(tokens)) else self.new_matcher(grammar, tokens)

    def new_matcher(self, grammar: str, tokens: Sequence[int]) -> LLMatcher:
        """The same, from a grammar that is compiled anew, and kept in the place of the one before."""
        matcher = self._compile(grammar).deep_copy()
        matcher.consume_tokens(list(tokens))
        return matcher

    def _compile(self, grammar: str) -> LLMatcher:
        compiled = LLMatcher(self._for_tokenizer(), grammar, log_level=0, limits=limits())
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return compiled

    def _for_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._path.read_text(), n_vocab=self._vocabulary, eos_token=self._ends
                )
            return self._tokenizer


def limits() -> LLParserLimits:
    return LLParserLimits(verbose_errors=False, **GRAMMAR_LIMITS)
