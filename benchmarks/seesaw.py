"""A request that moves back and forth between two decode instances, with neighbours that decode beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from .gaps import Arrival, Downtime, downtimes
from .streams import Streams, TokenStream

logger = logging.getLogger(__name__)

NEIGHBOURS = 8
"""On each decode instance."""
YOUNG, OLD = 128, 896
"""Contexts of a neighbour when it begins and, about, when a new one takes its place: 512 in the mean."""
SETTLE_TOKENS = 6
"""That the mover makes before it moves on, and that its latency there is taken from at least."""
MOVE_TOKENS = 24
"""About what a mover makes from one move to the next."""
STILL_TOKENS = 200
"""Length of a window in which nothing moves, in tokens of a neighbour."""
BALANCINGS = 5
"""Attempts at moving neighbours where they belong."""
MOST_TOKENS = 4096
"""More than a stream lives to make."""


class Seesaw:
    """A mover of about one context between `decoders`, eight neighbours of about 512 on each side."""

    def __init__(self, streams: Streams, decoders: tuple[str, str], context: int):
        self.context = context
        self.failed = 0
        """Moves that were not done."""
        self._streams = streams
        self._decoders = decoders
        self._grown = context + max(96, context // 8)
        """The context from which on another mover takes its place."""
        self._mover: TokenStream | None = None
        self._neighbours: list[TokenStream] = []
        self._compared = 0

    @property
    def steady(self) -> bool:
        """A mover lives long enough for windows that are compared."""
        return self._grown - self.context >= 10 * MOVE_TOKENS

    async def moves(self, mode: str, count: int) -> list[Downtime]:
        """At most `count` moves of one mode, at least one."""
        mover = await self._prepare(MOVE_TOKENS)
        found, _ = await self._move_on(mover, mode, count)
        return found

    async def compare(self, mode: str, count: int) -> tuple[list[Downtime], float, float]:
        """Moves, and the neighbours' step time in ms while they go on and while nothing moves, by turns first."""
        mover = await self._prepare(count * MOVE_TOKENS, STILL_TOKENS)
        self._compared += 1
        still_first = self._compared % 2 == 0
        still_ms = await self._stand_still() if still_first else 0.0
        found, moving_ms = await self._move_on(mover, mode, count)
        return found, moving_ms, still_ms if still_first else await self._stand_still()

    # ---- who sits on it

    async def _prepare(self, tokens: int, still_tokens: int = 0) -> TokenStream:
        """The mover near its context, and eight neighbours on each side, with so many tokens to go."""
        if self._mover is None or self._mover.context + tokens > self._grown:
            if self._mover is not None:
                await self._streams.close(self._mover)
            self._mover = self._streams.begin(self.context, MOST_TOKENS)
            await self._mover.reach(2)
        if self._aged(tokens + still_tokens) or not self._neighbours:
            await asyncio.gather(*map(self._streams.close, self._neighbours))
            wanted = NEIGHBOURS * len(self._decoders)
            self._neighbours = [self._streams.begin(YOUNG, MOST_TOKENS) for _ in range(wanted)]
            await asyncio.gather(*(neighbour.reach(2) for neighbour in self._neighbours))
            await self._balance()
        await self._mover.reach(self._mover.tokens + SETTLE_TOKENS)
        return self._mover

    def _aged(self, tokens: int) -> bool:
        return any(neighbour.context + tokens > OLD for neighbour in self._neighbours)

    async def _balance(self) -> None:
        """As many neighbours on each side. `TimeoutError` where moves are not done, again and again."""
        one, other = self._decoders
        for _ in range(BALANCINGS):
            here = [neighbour for neighbour in self._neighbours if neighbour.instance == one]
            there = [neighbour for neighbour in self._neighbours if neighbour.instance == other]
            more, target = (here, other) if len(here) > len(there) else (there, one)
            surplus = more[NEIGHBOURS:]
            if not surplus:
                return
            reasons = await asyncio.gather(*(self._streams.move(moved, target) for moved in surplus))
            await asyncio.gather(*(moved.reach(moved.tokens + SETTLE_TOKENS) for moved in surplus))
        raise TimeoutError(f"the neighbours could not be shared between {one} and {other}: {reasons}")

    # ---- windows

    async def _move_on(self, mover: TokenStream, mode: str, count: int) -> tuple[list[Downtime], float]:
        """Move until somebody has grown too long; the neighbours' step time in ms meanwhile."""
        window = Window([mover, *self._neighbours])
        for _ in range(count):
            reason = await self._move(mover, mode)
            if reason:
                logger.info("%s was not moved: %s", mover.name, reason)
                self.failed += 1
            if mover.context + MOVE_TOKENS > self._grown or self._aged(MOVE_TOKENS):
                break
        mine, *others = window.close()
        return downtimes(mine, SETTLE_TOKENS), step_ms(others)

    async def _move(self, mover: TokenStream, mode: str) -> str:
        """Move to the other side and make some tokens there; empty, or why it was not moved."""
        one, other = self._decoders
        destination = other if mover.instance == one else one
        moving = asyncio.create_task(self._streams.move(mover, destination, mode))
        while mover.instance != destination and not (moving.done() and moving.result()):
            await mover.reach(mover.tokens + 1)
        await mover.reach(mover.tokens + SETTLE_TOKENS)
        return await moving

    async def _stand_still(self) -> float:
        window = Window(self._neighbours)
        first = self._neighbours[0]
        await first.reach(first.tokens + STILL_TOKENS)
        return step_ms(window.close())


class Window:
    """What streams bring between its making and `close`."""

    def __init__(self, streams: Sequence[TokenStream]):
        self._streams = streams
        self._starts = [len(stream.arrivals) - 1 for stream in streams]

    def close(self) -> list[list[Arrival]]:
        """The arrivals of each stream, from the last before the window on."""
        return [stream.arrivals[start:] for stream, start in zip(self._streams, self._starts, strict=True)]


def step_ms(streams: Iterable[Sequence[Arrival]]) -> float:
    """Mean time between the tokens of all streams."""
    spans = [(arrivals[-1].at_s - arrivals[0].at_s, arrivals) for arrivals in streams]
    tokens = sum(arrival.tokens for _, arrivals in spans for arrival in arrivals[1:])
    return sum(span_s for span_s, _ in spans) * 1e3 / tokens
