"""Simple rules of dispatch, which look at loads alone; and what all rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .forecast import NOTHING, Given, queued_tokens
from .freeness import freeness
from .state import InstanceView, Key, RequestShape, blocks_for

RULES = ("predicted", "freeness", "least_loaded", "power_of_two", "round_robin")

Pair = tuple[InstanceView, InstanceView]
"""Who prefills and who decodes; may be the same."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is to be placed, and what is known beside the views."""

    request: RequestShape
    seed: int
    """Breaks ties."""
    turn: int = 0
    """How many were placed before."""
    given_to: Mapping[Key, Given] = field(default_factory=dict)
    """What instances were given that their views do not show yet."""

    def given(self, view: InstanceView) -> Given:
        return self.given_to.get(view.key, NOTHING)


def by_room(asked: Asked, prefills: Sequence[InstanceView], decodes: Sequence[InstanceView]) -> Pair:
    """The fewest prompt tokens queued, and the most blocks free; one that is best at both keeps the request.

    One that decodes prefills only where none is free of that, for a prefill step stalls all that it decodes.
    """
    prefill = _shortest(asked, prefills)
    decode = least(decodes, lambda view: (*room(asked, view), view.key != prefill.key), asked.seed)
    return prefill, decode


def by_rule(
    rule: str, asked: Asked, prefills: Sequence[InstanceView], decodes: Sequence[InstanceView]
) -> Pair:
    """One of the simple `RULES` picks the decode instance, which prefills too where all that prefill decode.

    Others than `prefills` take no prompt now; one that would prefill what it decodes is picked among them.
    """
    alone = [view for view in prefills if not view.may_decode]
    if not alone:
        decodes = [view for view in decodes if not view.may_prefill or view in prefills]
    decode = _RULES[rule](asked, decodes)
    if not alone and decode.may_prefill:
        return decode, decode
    if rule == "round_robin" and alone:
        return _in_turn(asked, alone), decode
    return _shortest(asked, alone or prefills), decode


def room(asked: Asked, view: InstanceView) -> tuple[int, ...]:
    """Least where there is most of it."""
    return int(slots_taken(asked, view)), -_free_blocks(asked, view), view.load.running


def slots_taken(asked: Asked, view: InstanceView) -> bool:
    return view.load.free_slots <= asked.given(view).sequences


def least(views: Sequence[InstanceView], load: Callable[[InstanceView], tuple], seed: int) -> InstanceView:
    """The view of the smallest load; among equals the seed picks, whatever their order."""
    loads = [(load(view), view) for view in views]
    best = min(first for first, _ in loads)
    equals = sorted((view for first, view in loads if first == best), key=lambda view: view.key)
    return equals[seed % len(equals)]


def _shortest(asked: Asked, prefills: Sequence[InstanceView]) -> InstanceView:
    def load(view: InstanceView) -> tuple[int, ...]:
        jobs = view.load.waiting + view.load.running
        queued = queued_tokens(view.load, asked.given(view))
        return int(view.may_decode), queued, jobs, -_free_blocks(asked, view)

    return least(prefills, load, asked.seed)


def _free_blocks(asked: Asked, view: InstanceView) -> int:
    """Those that nobody has or is predicted to need; cached ones give way to new ones."""
    load = view.load
    free = min(load.free_blocks + load.cached_blocks, load.total_blocks - load.needed_blocks)
    return free - asked.given(view).blocks


# ---- rules for the decode instance


def _in_turn(asked: Asked, views: Sequence[InstanceView]) -> InstanceView:
    return sorted(views, key=lambda view: view.key)[asked.turn % len(views)]


def _freest(asked: Asked, views: Sequence[InstanceView]) -> InstanceView:
    """By freeness, in which all that waits counts: what comes now goes behind it."""

    def load(view: InstanceView) -> tuple[bool, bool, float]:
        load, given = view.load, asked.given(view)
        behind = max(0, blocks_for(load.queued_tokens, load.block_size) - load.head_blocks)
        own = load.blocks_of(asked.request.prompt_tokens + (asked.request.expected_tokens or 0))
        free = freeness(view, given.blocks + behind + own, given.sequences + load.waiting + 1)
        before = given.blocks + behind + load.head_blocks
        waits = before + load.blocks_of(asked.request.prompt_tokens + 1) > load.room_blocks
        return slots_taken(asked, view), waits, -free

    return least(views, load, asked.seed)


def _least_loaded(asked: Asked, views: Sequence[InstanceView]) -> InstanceView:
    """The smallest share of memory that is held, or will be by what waits."""

    def load(view: InstanceView) -> tuple[bool, float]:
        load = view.load
        waits = blocks_for(load.queued_tokens, load.block_size) + asked.given(view).blocks
        held = load.held_blocks + load.leased_blocks + load.quarantined_blocks
        return slots_taken(asked, view), (held + waits) / max(1, load.total_blocks)

    return least(views, load, asked.seed)


def _power_of_two(asked: Asked, views: Sequence[InstanceView]) -> InstanceView:
    """The less loaded of two that the seed picks."""
    ordered = sorted(views, key=lambda view: view.key)
    first, more = asked.seed % len(ordered), asked.seed // len(ordered) % max(1, len(ordered) - 1)
    return _least_loaded(asked, [ordered[first], ordered[(first + 1 + more) % len(ordered)]])


_RULES: dict[str, Callable[[Asked, Sequence[InstanceView]], InstanceView]] = {
    "freeness": _freest,
    "least_loaded": _least_loaded,
    "power_of_two": _power_of_two,
    "round_robin": _in_turn,
}
