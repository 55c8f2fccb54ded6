"""Laws of the handover at random: many faults at once, and still all is told once and all is freed at last."""

from __future__ import annotations

import functools
import random

from explorer.breach import Breach
from explorer.instance import Shape
from explorer.mechanics import State
from explorer.scenario import Scenario
from explorer.scenarios import BUDGET
from explorer.world import Move, World
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = (
    Shape(prompt=2, output=2, block_size=1, pool=3),
    Shape(prompt=2, output=3, block_size=2, pool=2),
    Shape(prompt=3, output=3, block_size=2, pool=4, chunk=1),
    Shape(prompt=1, output=4, block_size=2, pool=3),
)
PATIENCE = 3000
"""Steps without faults within which a world comes to rest; a walk at random takes some hundreds."""


@functools.cache
def world(shape: Shape, one_sided: bool) -> World:
    shape = Shape(**{name: getattr(shape, name) for name in shape.__slots__} | {"one_sided": one_sided})
    return World(Scenario("at random", shape, BUDGET, faults=8, routers=2))


def moves(here: World, state: State) -> list[Move]:
    """What may happen next; a breach fails the test."""
    try:
        return here.moves(state)
    except Breach as breach:
        raise AssertionError(f"{breach}, by {here.words(breach.label)}") from breach


def mending(here: World, state: State) -> list[Move]:
    """What may happen without faults; where that is nothing, somebody wakes or restarts an instance."""
    found = moves(here, state)
    return [move for move in found if move[0]] or [move for move in found if move[1][0] in ("wake", "boot")]


@settings(deadline=None, max_examples=150)
@given(
    shape=st.sampled_from(SHAPES),
    one_sided=st.booleans(),
    picks=st.lists(st.integers(0, 999), max_size=150),
    seed=st.integers(0, 999),
)
def test_whatever_happens_everything_is_told_once_and_freed_at_last(
    shape: Shape, one_sided: bool, picks: list[int], seed: int
) -> None:
    here = world(shape, one_sided)
    state = here.start()
    for pick in picks:
        if found := moves(here, state):
            state = found[pick % len(found)][2]
    chance = random.Random(seed)
    for _ in range(PATIENCE):
        if here.good(state):
            return
        found = mending(here, state)
        assert found, "nothing more can happen, and something is still held"
        state = chance.choice(found)[2]
    raise AssertionError("no rest, and no end in sight")
