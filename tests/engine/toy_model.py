"""A model whose KV is the tokens themselves, so that a wrong block anywhere changes every token that follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np

from penstock.engine.blocks import GONE
from penstock.engine.step import StepItem
from penstock.handover.values import Context

VOCABULARY = 97
EOS = 7


class ToyFlight:
    """A step that is carried out when its result is asked for, behind those launched earlier."""

    def __init__(self, model: ToyModel, items: Sequence[StepItem], after: ToyFlight | None):
        self.model, self.items, self.after = model, items, after
        self.tokens: list[int | None] | None = None

    def result(self) -> list[int | None]:
        while self.tokens is None:
            flight = self.model.flights.popleft()
            before, flight.after = flight.after and flight.after.result(), None
            flight.tokens = self.model.run(flight.items, before or ())
        return self.tokens


class ToyModel:
    """`cells` is its cache, `[blocks, block_size]`: at each place the token whose KV lies there, -1 for none.

    A token sees the last `window` ones, itself included; all where that is None.
    """

    def __init__(self, blocks: int, block_size: int, window: int | None = None):
        self.block_size = block_size
        self.window = window
        self.cells = np.full((blocks, block_size), -1, dtype=np.int64)
        self.fed = 0
        """Tokens that were computed."""
        self.flights: deque[ToyFlight] = deque()
        """Launched, and not begun before they must be: what writes late harms whoever was given the blocks early."""

    def launch(
        self, items: Sequence[StepItem], after: ToyFlight | None, meanwhile: Callable[[], None]
    ) -> ToyFlight:
        flight = ToyFlight(self, items, after)
        self.flights.append(flight)
        meanwhile()
        return flight

    def run(self, items: Sequence[StepItem], before: Sequence[int | None]) -> list[int | None]:
        return [self._run(item, before) for item in items]

    def _run(self, item: StepItem, before: Sequence[int | None]) -> int | None:
        seen = item.block_table[self._first_seen(item.start) // self.block_size :]
        assert GONE not in seen and len(set(seen)) == len(seen), "what the chunk's first token sees is there"
        tokens = item.tokens if item.follows is None else [before[item.follows]]
        self.fed += len(tokens)
        for position, token in enumerate(tokens, item.start):
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
