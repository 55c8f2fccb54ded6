"""Makes workloads: arrivals at random times, lengths from heavy-tailed distributions, and conversations.

Everything is drawn by a seed, and the same arguments give the same workload.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .workload import MOST_TOKENS, Request, Workload

SESSION_BLOCK_TOKENS = 16
"""Tokens of the blocks in which turns of a conversation share their prompt."""


class Distribution(Protocol):
    """Positive numbers at random."""

    def draw(self, draw: random.Random) -> float: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    value: float

    def __post_init__(self) -> None:
        _require(value=self.value)

    def draw(self, draw: random.Random) -> float:
        del draw
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Log-normal of a mean and a coefficient of variation, cut to a range (which moves the mean a little)."""

    mean: float
    cv: float = 1.0
    least: float = 0.0
    most: float = MOST_TOKENS

    def __post_init__(self) -> None:
        _require(mean=self.mean, cv=self.cv)
        _require_range(self.least, self.most)

    def draw(self, draw: random.Random) -> float:
        variance = math.log(1 + self.cv**2)
        value = draw.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(self.most, max(self.least, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """Pareto between `least` and `most`: the chance to exceed x falls like x^-alpha."""

    alpha: float
    least: float
    most: float

    def __post_init__(self) -> None:
        _require(alpha=self.alpha, least=self.least)
        _require_range(self.least, self.most)

    def draw(self, draw: random.Random) -> float:
        kept = 1 - (self.least / self.most) ** self.alpha
        value = self.least * (1 - draw.random() * kept) ** (-1 / self.alpha)
        return min(self.most, max(self.least, value))


@dataclass(frozen=True, slots=True)
class Rate:
    """Arrivals a second over time: straight lines between points (time in s, rate); before and after them level."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a rate needs at least one point")
        times = [time_s for time_s, _ in self.points]
        if times != sorted(set(times)) or not all(map(math.isfinite, times)):
            raise ValueError(f"the times of a rate must ascend, got {times}")
        if not all(math.isfinite(rate) and rate >= 0 for _, rate in self.points) or self.points[-1][1] == 0:
            raise ValueError(
                f"rates must be at least 0 and the last above 0, got {[r for _, r in self.points]}"
            )

    @classmethod
    def steady(cls, per_s: float) -> Rate:
        return cls(((0.0, per_s),))

    @classmethod
    def drift(cls, start_per_s: float, end_per_s: float, over_s: float) -> Rate:
        """From one rate to another over that time, and level from there on."""
        return cls(((0.0, start_per_s), (over_s, end_per_s)))

    def after(self, time_s: float, expected: float) -> float:
        """When the expected number of arrivals since `time_s` has reached `expected`."""
        if not expected:
            return time_s
        for start, end in zip(self.points, self.points[1:], strict=False):
            if time_s >= end[0]:
                continue
            if time_s < start[0]:  # level before the first point
                room = start[1] * (start[0] - time_s)
                if room >= expected and start[1]:
                    return time_s + expected / start[1]
                time_s, expected = start[0], expected - room
            slope = (end[1] - start[1]) / (end[0] - start[0])
            here = start[1] + slope * (time_s - start[0])
            room = (here + end[1]) / 2 * (end[0] - time_s)
            if room >= expected:
                # here t + slope t^2 / 2 = expected, in the form that holds for slope 0 too
                return time_s + 2 * expected / (here + math.sqrt(max(0.0, here**2 + 2 * slope * expected)))
            time_s, expected = end[0], expected - room
        return time_s + expected / self.points[-1][1]


def arrivals(rate: Rate, count: int, seed: int, cv: float = 1.0) -> list[float]:
    """`count` arrival times in seconds: a Gamma renewal process of that coefficient of variation, bent to the rate.

    A `cv` of 1 is Poisson, above it arrivals come in bursts, and 0 is a clock.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    if not (math.isfinite(cv) and cv >= 0):
        raise ValueError(f"cv must be a number of at least 0, got {cv}")
    draw, time_s, times = random.Random(f"{seed} arrivals"), 0.0, []
    for _ in range(count):
        gap = draw.gammavariate(1 / cv**2, cv**2) if cv else 1.0
        time_s = rate.after(time_s, gap)
        times.append(time_s)
    return times


def independent(
    name: str, times: Sequence[float], prompt: Distribution, output: Distribution, seed: int
) -> Workload:
    """Requests at those times with lengths of their own, nothing shared."""
    draw = random.Random(f"{seed} lengths")
    requests = [
        Request(arrival_s=time_s, prompt_tokens=_tokens(prompt, draw), output_tokens=_tokens(output, draw))
        for time_s in times
    ]
    return Workload.of(name, requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What sessions are like. A turn's prompt is all that was said before, and a new message."""

    turns: Distribution
    message: Distribution
    """Tokens that a person or a tool adds."""
    output: Distribution
    think_s: Distribution
    """Time that a person takes for the next message."""
    tool_s: Distribution = field(default_factory=lambda: Fixed(1.0))
    tool_share: float = 0.0
    """Share of the turns whose next message comes from a tool."""
    system_tokens: int = 0
    """Tokens before the first message, which all sessions share."""
    most_tokens: int = MOST_TOKENS
    """A session ends before a turn whose prompt and output would be longer."""
    first_token_s: float = 0.5
    """With `token_s`, what a turn is taken to last, so that arrival times can be told before it runs."""
    token_s: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.tool_share <= 1:
            raise ValueError(f"tool_share must be from 0 to 1, got {self.tool_share}")
        if self.system_tokens < 0:
            raise ValueError(f"system_tokens must be at least 0, got {self.system_tokens}")


def sessions(name: str, starts: Sequence[float], plan: Conversation, seed: int) -> Workload:
    """A conversation from each of the `starts` on.

    Later turns carry `gap_s`, the time to wait after the turn before; their `arrival_s` is right if turns last as
    long as the plan takes them to.
    """
    requests: list[Request] = []
    for number, start_s in enumerate(starts):
        requests += _session(
            f"{name}-{number}", number, start_s, plan, random.Random(f"{seed} session {number}")
        )
    return Workload.of(name, requests)


def _session(
    session: str, number: int, start_s: float, plan: Conversation, draw: random.Random
) -> list[Request]:
    requests: list[Request] = []
    time_s, gap_s, said = start_s, 0.0, plan.system_tokens
    for turn in range(_tokens(plan.turns, draw)):
        prompt, output = said + _tokens(plan.message, draw), _tokens(plan.output, draw)
        if prompt + output > plan.most_tokens:
            break
        requests.append(
            Request(
                arrival_s=time_s,
                prompt_tokens=prompt,
                output_tokens=output,
                hash_ids=_blocks(number, prompt, plan.system_tokens),
                hash_block_tokens=SESSION_BLOCK_TOKENS,
                session=session,
                turn=turn,
                gap_s=gap_s,
            )
        )
        said = prompt + output
        gap_s = (plan.tool_s if draw.random() < plan.tool_share else plan.think_s).draw(draw)
        time_s += plan.first_token_s + plan.token_s * output + gap_s
    return requests


def _blocks(number: int, prompt: int, system_tokens: int) -> tuple[int, ...]:
    """The blocks of a session's text: those of the system prompt are everybody's, the others its own.

    Turns of a session share all blocks of the shorter, for a block that is cut begins like the full one.
    """
    count, common = -(-prompt // SESSION_BLOCK_TOKENS), system_tokens // SESSION_BLOCK_TOKENS
    base = common + number * (MOST_TOKENS // SESSION_BLOCK_TOKENS)
    return tuple(block if block < common else base + block for block in range(count))


def _tokens(lengths: Distribution, draw: random.Random) -> int:
    return min(MOST_TOKENS, max(1, round(lengths.draw(draw))))


def _require(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a number above 0, got {value}")


def _require_range(least: float, most: float) -> None:
    if not 0 <= least <= most or not math.isfinite(most):
        raise ValueError(f"least must be at least 0 and at most `most`, got {least} and {most}")
