"""Steps to measure: prompts alone, decodes alone, and both, over the sizes that an instance runs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..engine.blocks import BlockPool
from ..engine.layout import CacheLayout
from ..engine.step import SampleSpec, StepItem
from ..policy.cost import StepShape
from ..policy.state import blocks_for

LARGEST_CHUNK = 1024
MOST_CHUNKS = 4
DEEPEST = 8192
"""Tokens before a chunk, and of a decode's context."""
LARGEST_BATCH = 64
FILLED = 0.8
"""Share of the cache that a step's sequences may take."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: chunks as (tokens, tokens before them), and the contexts of the decodes."""

    chunks: tuple[tuple[int, int], ...] = ()
    contexts: tuple[int, ...] = ()

    @property
    def shape(self) -> StepShape:
        return StepShape.of(self.chunks, self.contexts)

    def sequences(self) -> list[tuple[int, int]]:
        """(tokens fed, tokens before them) of every sequence."""
        return [(1, context) for context in self.contexts] + list(self.chunks)


def draw_plans(count: int, seed: int, context_tokens: int, layout: CacheLayout) -> list[StepPlan]:
    """`count` plans, a third of each kind, their sizes spread evenly over orders of magnitude.

    Sequences stay within `context_tokens`, and all of a step within a share of the cache.
    """
    draw = random.Random(seed)
    room = int(FILLED * layout.blocks)
    longest = min(context_tokens, (room - MOST_CHUNKS) * layout.block_size)
    if longest < 32:
        raise ValueError(
            f"a cache of {layout.blocks} blocks is too small to measure steps; raise engine.kv_bytes"
        )
    plans = []
    for number in range(count):
        chunks = _chunks(draw, longest) if number % 3 != 1 else ()
        left = room - sum(blocks_for(sum(chunk), layout.block_size) for chunk in chunks)
        contexts = _contexts(draw, longest - 1) if number % 3 != 0 else ()
        plans.append(StepPlan(chunks, tuple(_fitting(contexts, left, layout.block_size))))
    return plans


def items(plan: StepPlan, layout: CacheLayout, vocabulary: int, seed: int) -> list[StepItem]:
    """What a runner is asked to do, with blocks as an instance's pool gives them, somewhere in the cache."""
    draw = random.Random(seed)
    sizes = [blocks_for(fed + before, layout.block_size) for fed, before in plan.sequences()]
    pool = BlockPool(layout.blocks)
    spare = layout.blocks - sum(sizes)
    if spare:
        pool.hold("others", draw.randint(1, spare), 0)
    sample = SampleSpec(1.0, seed, 0, 0)
    for place, blocks in enumerate(sizes):
        pool.hold(place, blocks, 0)
    return [
        StepItem([draw.randrange(vocabulary) for _ in range(fed)], before, pool.table(place), sample)
        for place, (fed, before) in enumerate(plan.sequences())
    ]


def _chunks(draw: random.Random, longest: int) -> tuple[tuple[int, int], ...]:
    """One prompt, or a few short ones; half of them with a prefix."""
    count = draw.choice((1, 1, 1, *range(2, MOST_CHUNKS + 1)))
    most = max(2, min(LARGEST_CHUNK, longest // 2) // count)
    sizes = [_log_uniform(draw, min(8, most), most) for _ in range(count)]
    deepest = min(DEEPEST, longest // count - max(sizes))
    befores = [_log_uniform(draw, 16, deepest) if draw.random() < 0.5 and deepest > 16 else 0 for _ in sizes]
    return tuple(zip(sizes, befores, strict=True))


def _contexts(draw: random.Random, longest: int) -> list[int]:
    """A batch of decodes around a common length."""
    count = _log_uniform(draw, 1, LARGEST_BATCH)
    middle = _log_uniform(draw, 16, min(DEEPEST, longest))
    return [min(longest, max(1, round(middle * draw.uniform(0.5, 1.5)))) for _ in range(count)]


def _fitting(contexts: Iterable[int], room: int, block_size: int) -> Iterator[int]:
    """The first of `contexts` that fit into `room` blocks together."""
    for context in contexts:
        room -= blocks_for(context + 1, block_size)
        if room < 0:
            return
        yield context


def _log_uniform(draw: random.Random, least: int, most: int) -> int:
    return round(least * (most / least) ** draw.random())
