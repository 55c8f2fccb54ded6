"""Breadth-first search through the states of a world, for the shortest trace to a breach or a dead end."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

import numpy as np

from .breach import Breach
from .mechanics import State
from .scenario import Scenario
from .world import World


@dataclass(frozen=True)
class Found:
    """What an exploration saw; `breach` is None where every law held, `whole` where no state was left out."""

    scenario: str
    states: int
    depth: int
    seconds: float
    whole: bool
    breach: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        rate = self.states / max(self.seconds, 1e-9)
        line = f"{self.scenario}: {self.states:,} states, depth {self.depth}, {self.seconds:.1f} s, {rate:,.0f}/s"
        if not self.whole:
            line += " (cut)"
        if self.breach is None:
            return line
        steps = "\n".join(f"  {i:2} {step}" for i, step in enumerate(self.trace, 1))
        return f"{line}\nBREACH: {self.breach}\n{steps}"


class _Graph:
    """States by number, who found each, and the edges that spend no fault."""

    def __init__(self, root: State) -> None:
        self.index: dict[State, int] = {root: 0}
        self.states: list[State] = [root]
        self.parent = array("i", [-1])
        self.from_ = array("i")
        self.to = array("i")

    def add(self, state: State, parent: int) -> int:
        known = self.index.get(state)
        if known is None:
            known = self.index[state] = len(self.states)
            self.states.append(state)
            self.parent.append(parent)
        return known

    def stuck(self, good: np.ndarray, visited: int) -> int | None:
        """The first state from which no path without faults leads to a good one, or to one that was not visited."""
        good[visited:] = True
        source, target = np.frombuffer(self.from_, np.int32), np.frombuffer(self.to, np.int32)
        order = np.argsort(target, kind="stable")
        source, starts = source[order], np.searchsorted(target[order], np.arange(len(self.states) + 1))
        reached, frontier = good.copy(), np.flatnonzero(good)
        while len(frontier):
            spans = [source[starts[i] : starts[i + 1]] for i in frontier]
            before = np.unique(np.concatenate(spans)) if spans else frontier[:0]
            frontier = before[~reached[before]]
            reached[frontier] = True
        lost = np.flatnonzero(~reached)
        return int(lost[0]) if len(lost) else None


def explore(scenario: Scenario, limit: int = 10**9) -> Found:
    """Visit every state of the scenario, nearest first, at most `limit` of them.

    Checks the laws at every step, and that every state has a way, free of faults, to a good one (or to one left out).
    """
    begun = time.monotonic()
    world = World(scenario)
    graph = _Graph(world.start())
    depth, level_end, at = 0, 1, 0
    breach: Breach | None = None
    while at < len(graph.states) < limit:
        if at == level_end:
            depth, level_end = depth + 1, len(graph.states)
        try:
            moves = world.moves(graph.states[at])
        except Breach as found:
            breach = found
            break
        for free, _, state in moves:
            number = graph.add(state, at)
            if free:
                graph.from_.append(at)
                graph.to.append(number)
        at += 1
    whole = at == len(graph.states) and breach is None
    law, trace = (
        (None, ())
        if breach is None
        else (str(breach), (*_trace(world, graph, at), world.words(breach.label)))
    )
    if breach is None:
        stuck = graph.stuck(np.fromiter(map(world.good, graph.states), bool, len(graph.states)), at)
        if stuck is not None:
            law, trace = (
                "no way out of here: something is never freed, or the client waits forever",
                _trace(world, graph, stuck),
            )
    return Found(scenario.name, len(graph.states), depth, time.monotonic() - begun, whole, law, tuple(trace))


def _trace(world: World, graph: _Graph, number: int) -> list[str]:
    """The steps that lead to a state."""
    path = [number]
    while graph.parent[path[-1]] >= 0:
        path.append(graph.parent[path[-1]])
    path.reverse()
    steps = []
    for here, there in zip(path, path[1:], strict=False):
        wanted = graph.states[there]
        label = next(label for _, label, state in world.moves(graph.states[here]) if state == wanted)
        steps.append(world.words(label))
    return steps
