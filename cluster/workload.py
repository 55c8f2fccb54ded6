"""Workloads: requests with the times at which they arrive, as values, and what can be done to them.

Transformations are pure: they return a new workload, the same for the same arguments.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

PRIORITIES = ("normal", "high")
MOST_TOKENS = 100_000_000
"""No prompt and no output is longer: a trace that says so is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as its client sends it."""

    arrival_s: float
    """Since the workload began. For a later turn of a session it is an estimate: see `gap_s`."""
    prompt_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    """The prompt's leading blocks: requests whose first k ids agree share the tokens of k blocks. The prompt's end may
    cut the last one."""
    hash_block_tokens: int = 0
    """Tokens of such a block."""
    session: str = ""
    """Requests of one session form a conversation; empty where the request stands alone."""
    turn: int = 0
    gap_s: float = 0.0
    """Of a later turn: time from the end of the turn before to this one, while a person thinks or a tool works."""
    application: str = ""
    tenant: str = ""
    priority: str = "normal"

    def __post_init__(self) -> None:
        for name in ("arrival_s", "gap_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("prompt_tokens", "output_tokens"):
            if not 1 <= getattr(self, name) <= MOST_TOKENS:
                raise ValueError(f"{name} must be from 1 to {MOST_TOKENS}, got {getattr(self, name)}")
        if self.turn < 0 or self.hash_block_tokens < 0:
            raise ValueError("turn and hash_block_tokens must be at least 0")
        if self.hash_ids and (len(self.hash_ids) - 1) * self.hash_block_tokens >= self.prompt_tokens:
            blocks = f"{len(self.hash_ids)} blocks of {self.hash_block_tokens} tokens"
            raise ValueError(f"hash_ids: {blocks} are more than a prompt of {self.prompt_tokens} tokens has")
        if self.hash_ids and not self.hash_block_tokens:
            raise ValueError("hash_ids need hash_block_tokens, the tokens of their blocks")
        if self.priority not in PRIORITIES:
            raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, got {self.priority!r}")

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prompt that `hash_ids` name; the others are its own."""
        return min(self.prompt_tokens, len(self.hash_ids) * self.hash_block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in order of arrival, and where they come from."""

    name: str
    requests: tuple[Request, ...]
    attribution: str = ""
    """Source and licence of a trace."""
    dropped: int = 0
    """Rows of the source that were failures and are not among the requests."""

    def __post_init__(self) -> None:
        times = [request.arrival_s for request in self.requests]
        assert times == sorted(times), "requests stand in order of arrival"

    @classmethod
    def of(cls, name: str, requests: Iterable[Request], attribution: str = "", dropped: int = 0) -> Workload:
        """A workload of `requests` in any order; those of equal times keep theirs."""
        ordered = tuple(sorted(requests, key=lambda request: request.arrival_s))
        return cls(name=name, requests=ordered, attribution=attribution, dropped=dropped)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def duration_s(self) -> float:
        """From the beginning to the last arrival."""
        return self.requests[-1].arrival_s if self.requests else 0.0

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals a second; 0 where that cannot be told."""
        return len(self.requests) / self.duration_s if self.duration_s else 0.0


def scale_rate(workload: Workload, factor: float) -> Workload:
    """`factor` times as many arrivals a second, in the same order. A session keeps the times between its turns."""
    _require_positive("factor", factor)
    starts: dict[str, float] = {}

    def moved(request: Request) -> Request:
        start = request.arrival_s
        if request.session:
            start = starts.setdefault(request.session, request.arrival_s)
        return replace(request, arrival_s=start / factor + (request.arrival_s - start))

    return _with(workload, map(moved, workload.requests))


def scale_lengths(workload: Workload, prompt: float = 1.0, output: float = 1.0) -> Workload:
    """Prompts and outputs that many times as long, at least 1 token. What requests share is scaled with them."""
    _require_positive("prompt", prompt)
    _require_positive("output", output)

    def scaled(request: Request) -> Request:
        block = max(1, round(request.hash_block_tokens * prompt)) if request.hash_ids else 0
        return replace(
            request,
            prompt_tokens=_scaled_prompt(request, block, prompt),
            output_tokens=max(1, round(request.output_tokens * output)),
            hash_block_tokens=block,
        )

    return _with(workload, map(scaled, workload.requests))


def labelled(
    workload: Workload, application: str = "", tenant: str = "", priority: str = "normal"
) -> Workload:
    """The same requests, all of this application, tenant and priority."""
    labels = {"application": application, "tenant": tenant, "priority": priority}
    return _with(workload, (replace(request, **labels) for request in workload.requests))


def cut(workload: Workload, start_s: float = 0.0, end_s: float = math.inf) -> Workload:
    """The arrivals from `start_s` on and before `end_s`, with `start_s` as the new beginning."""
    if not 0 <= start_s < end_s:
        raise ValueError(f"start_s must be at least 0 and below end_s, got {start_s} and {end_s}")
    inside = (request for request in workload.requests if start_s <= request.arrival_s < end_s)
    return _with(workload, (replace(request, arrival_s=request.arrival_s - start_s) for request in inside))


def first(workload: Workload, count: int) -> Workload:
    """The first `count` requests."""
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    return _with(workload, workload.requests[:count])


def splice(before: Workload, after: Workload, at_s: float, over_s: float = 0.0, seed: int = 0) -> Workload:
    """A shift from one workload to another: `before` until `at_s`, and from there on `after` from its beginning.

    During `over_s` from `at_s` on, both run: ever fewer requests of the first and ever more of the second, drawn by
    `seed`. Sessions and shared blocks of the two stay apart.
    """
    if not (at_s >= 0 and over_s >= 0 and math.isfinite(at_s) and math.isfinite(over_s)):
        raise ValueError(f"at_s and over_s must be numbers of at least 0, got {at_s} and {over_s}")
    draw = random.Random(seed)
    base = 1 + max((block for request in before.requests for block in request.hash_ids), default=-1)
    taken = {request.session for request in before.requests if request.session}

    def share(time_s: float) -> float:
        """How much of `after` runs at a time."""
        return float(time_s >= at_s) if not over_s else min(1.0, max(0.0, (time_s - at_s) / over_s))

    def apart(request: Request) -> Request:
        session = request.session
        while session in taken:
            session += "'"
        ids = tuple(base + block for block in request.hash_ids)
        return replace(request, arrival_s=at_s + request.arrival_s, hash_ids=ids, session=session)

    kept = _drawn(before.requests, lambda request: 1 - share(request.arrival_s), draw)
    moved = _drawn(map(apart, after.requests), lambda request: share(request.arrival_s), draw)
    attribution = "; ".join(dict.fromkeys(filter(None, (before.attribution, after.attribution))))
    return Workload.of(
        f"{before.name} then {after.name}", [*kept, *moved], attribution, before.dropped + after.dropped
    )


def token_ids(request: Request, vocabulary: int, seed: int = 0, own: str = "") -> list[int]:
    """The prompt as token ids below `vocabulary`, drawn by `seed`: blocks of equal hash id have equal tokens.

    `own` tells requests apart that have the same shared blocks, or none: what they do not share is drawn by it.
    """
    if vocabulary < 1:
        raise ValueError(f"vocabulary must be at least 1, got {vocabulary}")
    tokens: list[int] = []
    for block in request.hash_ids:
        count = min(request.hash_block_tokens, request.prompt_tokens - len(tokens))
        tokens += _draw_tokens(f"{seed} block {block}", count, vocabulary)
    return tokens + _draw_tokens(f"{seed} own {own}", request.prompt_tokens - len(tokens), vocabulary)


def _draw_tokens(key: str, count: int, vocabulary: int) -> list[int]:
    """The first `count` of the endless tokens of `key`, so that a cut block begins like a full one."""
    return random.Random(key).choices(range(vocabulary), k=count)


def _drawn(
    requests: Iterable[Request], share: Callable[[Request], float], draw: random.Random
) -> Sequence[Request]:
    """Requests kept with the probability of their time; a session is kept or left as its first turn is."""
    chosen: dict[str, bool] = {}
    kept = []
    for request in requests:
        drawn = draw.random() < share(request)
        if request.session:
            drawn = chosen.setdefault(request.session, drawn)
        if drawn:
            kept.append(request)
    return kept


def _scaled_prompt(request: Request, block: int, factor: float) -> int:
    """Tokens of the scaled prompt: what its blocks name scales with the block, so that their number stays right."""
    if not request.hash_ids:
        return max(1, round(request.prompt_tokens * factor))
    last = request.shared_tokens - (len(request.hash_ids) - 1) * request.hash_block_tokens
    own = request.prompt_tokens - request.shared_tokens
    shared = (len(request.hash_ids) - 1) * block + max(1, last * block // request.hash_block_tokens)
    return shared + round(own * factor)


def _with(workload: Workload, requests: Iterable[Request]) -> Workload:
    return Workload.of(workload.name, requests, workload.attribution, workload.dropped)


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number above 0, got {value}")
