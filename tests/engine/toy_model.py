"""A model whose KV is the tokens themselves, so that a wrong block anywhere changes every token that follows."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from penstock.engine.blocks import GONE
from penstock.engine.step import StepItem
from penstock.handover.values import Context

VOCABULARY = 97
EOS = 7


class ToyModel:
    """`cells` is its cache, `[blocks, block_size]`: at each place the token whose KV lies there, -1 for none.

    A token sees the last `window` ones, itself included; all where that is None.
    """

    def __init__(self, blocks: int, block_size: int, window: int | None = None):
        self.block_size = block_size
        self.window = window
        self.cells = np.full((blocks, block_size), -1, dtype=np.int64)

    def step(self, items: Sequence[StepItem]) -> list[int | None]:
        return [self._run(item) for item in items]

    def _run(self, item: StepItem) -> int | None:
        seen = item.block_table[self._first_seen(item.start) // self.block_size :]
        assert GONE not in seen and len(set(seen)) == len(seen), "what the chunk's first token sees is there"
        for position, token in enumerate(item.tokens, item.start):
            self.cells[item.block_table[position // self.block_size], position % self.block_size] = token
        if item.sample is None:
            return None
        end = item.start + len(item.tokens)
        first = self._first_seen(end - 1)
        passed = first // self.block_size
        history = self.cells[list(item.block_table[passed:])].reshape(-1)
        history = history[first - passed * self.block_size : end - passed * self.block_size]
        return draw(history, item.sample.seed, item.sample.position)

    def _first_seen(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)


def draw(history: np.ndarray, seed: int, position: int) -> int:
    return crc32(history.tobytes(), seed * 1000 + position) % VOCABULARY


def answer(context: Context, longest: int, window: int | None = None) -> list[int]:
    """All that the model says, by itself and in one go."""
    tokens = list(context.prompt)
    while True:
        seen = tokens if window is None else tokens[-window:]
        token = draw(np.array(seen, dtype=np.int64), context.params.seed, len(tokens) - len(context.prompt))
        tokens.append(token)
        made = len(tokens) - len(context.prompt)
        if token == EOS and not context.params.ignore_eos:
            break
        if made == context.params.max_tokens or len(tokens) == longest:
            break
    return tokens[len(context.prompt) :]
