"""Outputs that are held to a constraint: what is asked, what may come next, and whether a text satisfies it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from ..handover.values import GRAMMAR_LIMITS
from ..router.grammar_check import convert

VERSE = r"([a-z]{2,9} ){20,60}end"
COLOURS = ("red", "green", "deep blue")
ROWS: dict[str, Any] = {
    "type": "array",
    "minItems": 6,
    "maxItems": 12,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 20},
            "colour": {"enum": list(COLOURS)},
            "size": {"type": "integer", "minimum": 3, "maximum": 4000},
        },
        "required": ["name", "colour", "size"],
        "additionalProperties": False,
    },
    "x-guidance": {"whitespace_flexible": False},
}
SUMS = 'start: term ("+" term){10,40} "."\nterm: /[0-9]{1,4}/ | "(" term "*" term ")"'


@dataclass(frozen=True, slots=True)
class Held:
    """A constraint in the words of a request. `kind` is a field of `StructuredOutput`."""

    kind: str
    asked: str | tuple[str, ...]
    satisfied: Callable[[str], bool]

    @property
    def field(self) -> dict[str, Any]:
        """What `structured` is in a request."""
        return {self.kind: {"values": self.asked} if self.kind == "choices" else self.asked}

    @property
    def grammar(self) -> str:
        what = "values" if self.kind == "choices" else "text"
        return convert({"kind": self.kind, what: self.asked})


def _is_rows(text: str) -> bool:
    rows = json.loads(text)
    return 6 <= len(rows) <= 12 and all(
        row.keys() == {"name", "colour", "size"}
        and 1 <= len(row["name"]) <= 20
        and row["colour"] in COLOURS
        and 3 <= row["size"] <= 4000
        for row in rows
    )


def _is_sum(text: str) -> bool:
    """Brackets are reduced until none is left."""
    while (reduced := re.sub(r"\([0-9]{1,4}\*[0-9]{1,4}\)", "0", text)) != text:
        text = reduced
    return re.fullmatch(r"[0-9]{1,4}(\+[0-9]{1,4}){10,40}\.", text) is not None


CONSTRAINTS = (
    Held("regex", VERSE, lambda text: re.fullmatch(VERSE, text) is not None),
    Held("json_schema", json.dumps(ROWS), _is_rows),
    Held("choices", COLOURS, lambda text: text in COLOURS),
    Held("grammar", SUMS, _is_sum),
)


class Text:
    """A checkpoint's tokens as text, and the masks of constraints over them, made anew for every output."""

    def __init__(self, folder: Path, vocabulary: int, ends: frozenset[int]):
        path = folder / "tokenizer.json"
        self._ends = ends
        self._decoder = Tokenizer.from_file(str(path))
        self._tokenizer = LLTokenizer(path.read_text(), n_vocab=vocabulary, eos_token=sorted(ends))
        self._vocabulary = vocabulary

    def masks(self, held: Held, output: Sequence[int]) -> torch.Tensor:
        """Which tokens the constraint allows at each place of the output: [len(output), vocabulary], bool."""
        limits = LLParserLimits(verbose_errors=False, **GRAMMAR_LIMITS)
        matcher = LLMatcher(self._tokenizer, held.grammar, log_level=0, limits=limits)
        rows = []
        for token in output:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            rows.append(torch.from_numpy(bits[: self._vocabulary].astype(bool)))
            matcher.consume_token(token)
        return torch.stack(rows)

    def satisfies(self, held: Held, output: Sequence[int]) -> bool:
        """Whether a finished output, its end token left out, is what was asked for."""
        ids = output[:-1] if output[-1] in self._ends else output
        text = self._decoder.decode(list(ids), skip_special_tokens=False)
        try:
            return held.satisfied(text)
        except (ValueError, TypeError, AttributeError):
            return False
