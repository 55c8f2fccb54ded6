"""Seeded streams through the client that ships, which resumes by itself: their tokens, and when each came."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from ..client import AsyncClient, Delta, Finished, PenstockError
from .gaps import Arrival

STREAM_S = 90.0
"""Limit of one stream."""
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that gives the same tokens whenever it is asked again."""

    name: str
    prompt: tuple[int, ...]
    seed: int

    @classmethod
    def draw(cls, name: str, prompt_tokens: int, vocabulary: int) -> Asked:
        draw = random.Random(name)
        return cls(name, tuple(draw.choices(range(2, vocabulary), k=prompt_tokens)), draw.getrandbits(31))


@dataclass(eq=False)
class Witness:
    """One stream under way; `close` it, or let it come to its end."""

    asked: Asked
    began: float
    arrivals: list[Arrival] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    duplicated: int = 0
    """Tokens whose index had come before."""
    missing: int = 0
    """Indexes that were left out."""
    recoveries: int = 0
    error: str = ""
    task: asyncio.Task[None] | None = None

    @classmethod
    def begin(cls, client: AsyncClient, asked: Asked, most: int, label: str = "") -> Witness:
        """`label` tells apart runs of one request."""
        witness = cls(asked, time.perf_counter())
        witness.task = asyncio.create_task(witness._follow(client, most, label), name=asked.name)
        return witness

    @property
    def over(self) -> bool:
        return self.task is not None and self.task.done()

    @property
    def ttft_ms(self) -> float:
        return (self.arrivals[0].at_s - self.began) * 1e3

    @property
    def instance(self) -> str:
        """Who made the last token; empty where there is none yet."""
        return self.arrivals[-1].instance if self.arrivals else ""

    def owner_at(self, at: float) -> str:
        """Who had made the last token by then."""
        return next((one.instance for one in reversed(self.arrivals) if one.at_s <= at), "")

    def gap_ms(self, at: float) -> float | None:
        """The longest wait for a token that ended after that time; None where none has come since.

        A wait begins with the token before it, or with the request.
        """
        waits = self._waits_s(at)
        return max(waits) * 1e3 if waits else None

    def gap_steps(self, at: float) -> float | None:
        """The same in steps: beside the median wait since then."""
        waits = self._waits_s(at)
        return max(waits) / median(waits) if waits else None

    def _waits_s(self, at: float) -> list[float]:
        times = [self.began, *(one.at_s for one in self.arrivals)]
        return [later - earlier for earlier, later in pairwise(times) if later > at]

    async def close(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _follow(self, client: AsyncClient, most: int, label: str) -> None:
        asked = client.generate(
            self.asked.prompt,
            request_id=f"{self.asked.name}{label}",
            timeout_s=STREAM_S,
            seed=self.asked.seed,
            temperature=TEMPERATURE,
            max_tokens=most,
            ignore_eos=True,
        )
        try:
            async with aclosing(asked) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        self._take(event)
                    elif isinstance(event, Finished):
                        self.recoveries = event.usage.recoveries
        except PenstockError as error:
            self.error = str(error)

    def _take(self, delta: Delta) -> None:
        now = time.perf_counter()
        known = max(0, len(self.tokens) - delta.first_index)
        self.missing += max(0, delta.first_index - len(self.tokens))
        self.duplicated += min(known, len(delta.token_ids))
        fresh = delta.token_ids[known:]
        if fresh:
            self.arrivals.append(Arrival(now, len(self.tokens), len(fresh), delta.instance))
            self.tokens.extend(fresh)


async def until(reached: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
    """Wait for something that many parties bring about. `TimeoutError` names it."""
    try:
        async with asyncio.timeout(limit_s):
            while not reached():  # noqa: ASYNC110  many parties, none of which has an event for it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come within {limit_s:g} s") from None


async def grown(witnesses: Sequence[Witness], tokens: int, since: Sequence[int] = ()) -> None:
    """Wait until each has so many tokens, or so many more than it had; one that has ended is not waited for."""
    wanted = [tokens + had for had in since] if since else [tokens] * len(witnesses)
    pairs = list(zip(witnesses, wanted, strict=True))
    await until(
        lambda: all(one.over or len(one.tokens) >= count for one, count in pairs),
        f"{tokens} tokens of each stream",
    )
