"""Where a request goes: the instance to prefill it and the one to decode it, picked together.

Views are as old as the last step, and a burst is faster: what was assigned counts as used until a view can show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import forecast
from .cost import CostModel
from .forecast import Given
from .prediction import Prediction
from .rules import RULES, Asked, Pair, by_room, by_rule, least, room
from .state import InstanceView, Key, RequestShape

TPOT_SHARE = 0.6
"""Of what was promised for a token: steps vary, and a sequence stays for many of them."""
SETTLE_S = 0.1
SETTLE_STEPS = 3
"""Time from an assignment to the view that shows it: delivery, the step that runs and the next, and the way back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    """How requests are spread."""

    rule: str = "predicted"
    """One of `RULES`. Without a cost model nothing can be predicted: the shortest queue of prompts and the most free
    blocks are taken."""

    ahead_s: float = 0.0
    """Seconds of prompts that an instance may have before it and be given more; 0 is no limit."""

    itl_target_s: float = 0.0
    """A prompt harms no decode beside it whose step is within this; 0 where nobody says, and then it harms all."""

    tpot_s: float = 0.0
    """What the request was promised: an instance whose steps would be longer with it is given no more; 0 promises
    nothing."""

    lag: float = 1.0
    """How many times as long as is expected first tokens take; see `forecast.lag`."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        for name in ("ahead_s", "itl_target_s", "tpot_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which instance prefills, and which decodes; `decode` is None where the first goes on by itself."""

    prefill: InstanceView
    decode: InstanceView | None
    first_s: float = 0.0
    """Seconds to the first token, as expected of machines that do nothing else."""


@dataclass(frozen=True, slots=True)
class NoInstance:
    """Nobody can take the request. `ever` is false where it fits no instance even when all are idle."""

    reason: str
    ever: bool = True
    busy: bool = False
    """Those that could take it have enough before them."""
    decoding: bool = False
    """Enough that decodes, that is; else enough prompts."""


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
    """Claims that are still unseen, oldest first, and how many requests were dispatched."""

    claims: tuple[Claim, ...] = ()
    turn: int = 0

    def given(self) -> dict[Key, Given]:
        """What each instance was given; nothing where it is not named."""
        sums: dict[Key, list[int]] = {}
        for claim in self.claims:
            given = sums.setdefault(claim.instance, [0, 0, 0])
            given[0] += 1
            given[1] += claim.tokens
            given[2] += claim.blocks
        return {instance: Given(*given) for instance, given in sums.items()}


def dispatch(
    request: RequestShape,
    views: Sequence[InstanceView],
    cfg: DispatchConfig,
    now: float,
    cost: CostModel | None,
    seed: int,
    memory: Memory,
    wanted: str = "",
) -> tuple[Assignment | NoInstance, Memory]:
    """Pick by the rule among those that may be given more; `NoInstance` too where nobody may.

    `now` is on the clock of the views' `seen_at`; `seed` breaks ties. Where an instance is `wanted` by name, it
    decodes, and prefills if it may.
    """
    memory = unseen(memory, views, now)
    able = _able(request, views, wanted)
    if isinstance(able, NoInstance):
        return able, memory
    asked = Asked(request, seed, memory.turn, memory.given())
    picked = _pick(asked, *able, cfg, cost)
    if isinstance(picked, NoInstance):
        return picked, memory
    prefill, decode = picked
    given, prefix = asked.given(prefill), request.prefix(prefill.key)
    first_s = forecast.first_s(prefill.load, given, request.prompt_tokens - prefix, prefix, cost)
    assignment = Assignment(prefill, None if decode.key == prefill.key else decode, first_s)
    claims = memory.claims + _claims(asked, assignment, now)
    return assignment, Memory(claims, memory.turn + 1)


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
    asked = Asked(request, seed, memory.turn, memory.given())
    decode = least(decodes, lambda view: room(asked, view), seed)
    blocks = decode.load.blocks_of(request.prompt_tokens)
    claim = Claim(decode.key, 0, blocks, now + _settle_s(decode))
    return decode, Memory((*memory.claims, claim), memory.turn)


def unseen(memory: Memory, views: Sequence[InstanceView], now: float) -> Memory:
    """Without the claims that the views show by now; of an instance that is away they last their time, for it may
    come back."""
    seen_at = {view.key: view.seen_at for view in views}
    claims = [claim for claim in memory.claims if seen_at.get(claim.instance, now) < claim.until]
    return Memory(tuple(claims), memory.turn)


def unservable(request: RequestShape, views: Sequence[InstanceView]) -> NoInstance | None:
    """Why no instance that is there could ever take the request; None where one could, or nobody is there."""
    able = _able(request, views, "")
    return able if isinstance(able, NoInstance) and not able.ever else None


def _able(
    request: RequestShape, views: Sequence[InstanceView], wanted: str
) -> tuple[list[InstanceView], list[InstanceView]] | NoInstance:
    """Those that may prefill it, and those that may decode it."""
    decodes = [view for view in views if view.may_decode and wanted in ("", view.name)]
    if not decodes:
        return NoInstance(f"no instance named {wanted} decodes" if wanted else "no instance decodes")
    there = [view for view in decodes if wanted and view.may_prefill]
    prefills = there or [view for view in views if view.may_prefill]
    if not prefills:
        return NoInstance("no instance prefills")
    tokens = request.prompt_tokens + 1
    prefills = [view for view in prefills if view.holds(tokens)]
    decodes = [view for view in decodes if view.holds(tokens)]
    if not prefills or not decodes:
        return NoInstance(f"{tokens} tokens fit the KV memory of no instance", ever=False)
    return prefills, decodes


def _pick(
    asked: Asked,
    prefills: Sequence[InstanceView],
    decodes: Sequence[InstanceView],
    cfg: DispatchConfig,
    cost: CostModel | None,
) -> Pair | NoInstance:
    """One that decodes prefills only where none is free of that, however busy; but for a prediction that it harms
    nobody."""
    queues_s = {
        view.key: cfg.lag * forecast.queue_s_of(view.load, asked.given(view), cost) for view in prefills
    }
    ready = [view for view in prefills if not 0 < cfg.ahead_s < queues_s[view.key]]
    if cfg.tpot_s:
        fast = [view for view in decodes if _token_s(asked, view, cost) <= TPOT_SHARE * cfg.tpot_s]
        if not fast:
            token_s = min(_token_s(asked, view, cost) for view in decodes)
            return NoInstance(
                f"a token would take {token_s:.3f} s, and is promised within {cfg.tpot_s:g} s",
                busy=True,
                decoding=True,
            )
        decodes = fast
    alone = any(not view.may_decode for view in prefills)
    if cfg.rule == "predicted" and cost:
        predicted = Prediction(asked, cost, cfg.itl_target_s).pick(ready, decodes, alone)
        if predicted is not None:
            return predicted
    ready = [view for view in ready if not (alone and view.may_decode)]
    if not ready:
        first = min(prefills, key=lambda view: queues_s[view.key])
        return NoInstance(f"{first.name} has {queues_s[first.key]:.2f} s of prompts before it", busy=True)
    if cfg.rule == "predicted":
        return by_room(asked, ready, decodes)
    return by_rule(cfg.rule, asked, ready, decodes)


def _token_s(asked: Asked, view: InstanceView, cost: CostModel | None) -> float:
    """Seconds a token where it decodes: nothing where it would be alone, since nobody else does better."""
    given = asked.given(view)
    if not view.load.decoding + given.sequences:
        return 0.0
    return forecast.next_token_s(view.load, given, asked.request.prompt_tokens, cost)


def _claims(asked: Asked, assignment: Assignment, now: float) -> tuple[Claim, ...]:
    prefill, request = assignment.prefill, asked.request
    load = prefill.load
    tokens = request.prompt_tokens - request.prefix(prefill.key)
    blocks = load.blocks_of(request.prompt_tokens)
    first = Claim(prefill.key, tokens, blocks, now + _settle_s(prefill))
    if assignment.decode is None:
        return (first,)
    # The decode instance is asked for blocks only after the first chunk, behind what queues already.
    ahead = forecast.queued_tokens(load, asked.given(prefill)) + min(tokens, load.prefill_tokens)
    wait_s = ahead / load.prefill_tokens * load.step_s
    until = now + wait_s + _settle_s(assignment.decode)
    return first, Claim(assignment.decode.key, 0, blocks, until)


def _settle_s(view: InstanceView) -> float:
    return SETTLE_S + SETTLE_STEPS * view.load.step_s
