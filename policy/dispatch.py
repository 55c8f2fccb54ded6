"""Where a request goes: the freest instance to prefill it and the freest to decode it.

Views are as old as the last step, and a burst is faster: what was assigned counts as used until a view can show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .state import InstanceView, RequestShape, blocks_for

SETTLE_S = 0.25
"""Time from an assignment to the view that shows it: delivery, a step, and the way back."""

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which instance prefills, and which decodes; `decode` is None where the first goes on by itself."""

    prefill: InstanceView
    decode: InstanceView | None


@dataclass(frozen=True, slots=True)
class NoInstance:
    """Nobody can take the request. `ever` is false where it fits no instance even when all are idle."""

    reason: str
    ever: bool = True


@dataclass(frozen=True, slots=True)
class Claim:
    """Work that an instance was given and that no view older than `until` shows."""

    instance: Key
    tokens: int
    """Prompt tokens to prefill."""
    blocks: int
    """KV blocks to hold."""
    until: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Claims that are still unseen, oldest first."""

    claims: tuple[Claim, ...] = ()

    def of(self, view: InstanceView) -> list[Claim]:
        return [claim for claim in self.claims if claim.instance == view.key]


def dispatch(
    request: RequestShape,
    views: Sequence[InstanceView],
    now: float,
    seed: int,
    memory: Memory,
    wanted: str = "",
) -> tuple[Assignment | NoInstance, Memory]:
    """Pick the instance with the fewest prompt tokens queued, and the one with the most blocks free.

    One that decodes prefills only where none is free of that, for a prefill step stalls all that it decodes; one that
    is best at both keeps the request. `now` is on the clock of the views' `seen_at`; `seed` breaks ties.
    Where an instance is `wanted` by name, it decodes, and prefills if it may.
    """
    memory = unseen(memory, views, now)
    decodes = [view for view in views if view.may_decode and wanted in ("", view.name)]
    if not decodes:
        return NoInstance(f"no instance named {wanted} decodes" if wanted else "no instance decodes"), memory
    there = [view for view in decodes if wanted and view.may_prefill]
    prefills = there or [view for view in views if view.may_prefill]
    if not prefills:
        return NoInstance("no instance prefills"), memory
    tokens = request.prompt_tokens + 1
    prefills = [view for view in prefills if view.holds(tokens)]
    decodes = [view for view in decodes if view.holds(tokens)]
    if not prefills or not decodes:
        return NoInstance(f"{tokens} tokens fit the KV memory of no instance", ever=False), memory
    prefill = _least(prefills, lambda view: _prefill_load(view, memory), seed)
    decode = _least(decodes, lambda view: (*_decode_load(view, memory), view.key != prefill.key), seed)
    assignment = Assignment(prefill, None if decode.key == prefill.key else decode)
    return assignment, Memory(memory.claims + _claims(request, assignment, memory, now))


def redirect(
    request: RequestShape,
    views: Sequence[InstanceView],
    avoid: frozenset[Key],
    now: float,
    seed: int,
    memory: Memory,
    wanted: str = "",
) -> tuple[InstanceView | NoInstance, Memory]:
    """Pick another instance to decode a request that is prefilled already, none of `avoid`; `wanted` one by name."""
    memory = unseen(memory, views, now)
    others = [view for view in views if view.key not in avoid and wanted in ("", view.name)]
    decodes = [view for view in others if view.may_decode and view.holds(request.prompt_tokens + 1)]
    if not decodes:
        return NoInstance(
            f"no instance named {wanted} decodes" if wanted else "no other instance decodes"
        ), memory
    decode = _least(decodes, lambda view: _decode_load(view, memory), seed)
    blocks = blocks_for(request.prompt_tokens, decode.load.block_size)
    return decode, Memory((*memory.claims, Claim(decode.key, 0, blocks, now + SETTLE_S)))


def unseen(memory: Memory, views: Sequence[InstanceView], now: float) -> Memory:
    """Without the claims that the views show by now; of an instance that is away they last their time, for it may
    come back."""
    seen_at = {view.key: view.seen_at for view in views}
    return Memory(tuple(claim for claim in memory.claims if seen_at.get(claim.instance, now) < claim.until))


def _prefill_load(view: InstanceView, memory: Memory) -> tuple[int, ...]:
    jobs = view.load.waiting + view.load.running
    return int(view.may_decode), _queued(view, memory), jobs, -_free_blocks(view, memory.of(view))


def _queued(view: InstanceView, memory: Memory) -> int:
    return view.load.queued_tokens + sum(claim.tokens for claim in memory.of(view))


def _decode_load(view: InstanceView, memory: Memory) -> tuple[int, ...]:
    claims = memory.of(view)
    full = view.load.free_slots <= len(claims)
    return int(full), -_free_blocks(view, claims), view.load.running


def _free_blocks(view: InstanceView, claims: Sequence[Claim]) -> int:
    """Cached blocks give way to new ones, so they count as free."""
    return view.load.free_blocks + view.load.cached_blocks - sum(claim.blocks for claim in claims)


def _claims(request: RequestShape, assignment: Assignment, memory: Memory, now: float) -> tuple[Claim, ...]:
    prefill = assignment.prefill
    blocks = blocks_for(request.prompt_tokens, prefill.load.block_size)
    first = Claim(prefill.key, request.prompt_tokens, blocks, now + SETTLE_S)
    if assignment.decode is None:
        return (first,)
    # The decode instance is asked for blocks only after the first chunk, behind what queues already.
    ahead = _queued(prefill, memory) + min(request.prompt_tokens, prefill.load.prefill_tokens)
    wait_s = ahead / prefill.load.prefill_tokens * prefill.load.step_s
    return first, Claim(assignment.decode.key, 0, blocks, now + wait_s + SETTLE_S)


def _least(views: Sequence[InstanceView], load: Callable[[InstanceView], tuple], seed: int) -> InstanceView:
    """The view of the smallest load; among equals the seed picks, whatever their order."""
    loads = [(load(view), view) for view in views]
    best = min(first for first, _ in loads)
    equals = sorted((view for first, view in loads if first == best), key=lambda view: view.key)
    return equals[seed % len(equals)]
