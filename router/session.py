"""One choice of one request while it lives: the protocol's session, driven with clocks, dispatch and a client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace

import grpc

from ..handover import rules
from ..handover.config import HandoverConfig
from ..handover.effects import (
    Cancel,
    Closed,
    Deliver,
    Dispatched,
    FromInstance,
    InstanceLost,
    MoveAsked,
    MoveEnded,
    NeedDestination,
    NeedDispatch,
    Nudge,
    RecoverAsked,
    SessionEffect,
    SessionEvent,
    Silent,
    Tell,
)
from ..handover.session import Session
from ..handover.values import (
    FOREVER,
    Address,
    Context,
    End,
    Epoch,
    Incarnation,
    InstanceMessage,
    MoveMode,
    News,
    Revoke,
)
from ..policy.dispatch import Assignment, NoInstance
from ..policy.state import InstanceView, RequestShape
from .config import RouterConfig
from .fleet import Delta, Fleet, Mode, MoveResult, MoveWanted
from .refusal import Refused, invalid, unserved
from .session_move import SessionMove, SessionMoves
from .wire import Call

UNBEGUN = "it had not begun there"
"""Why a session is sent elsewhere at no loss."""
MOST_LOSSES = 3
"""So many instances that are lost in a row with a request that makes no token: it may be what ends them."""
RETRY_S = 0.1
"""How soon an instance or a destination is looked for again."""


class LiveSession:
    """Feeds the pure session, carries out its effects, and holds what the client has not read yet."""

    def __init__(self, call: Call, fleet: Fleet, cfg: RouterConfig, handover: HandoverConfig):
        self.call = call
        self.key = call.session
        self.emitted = list(call.received)
        self.machine = Session(self.key, call.attempt, next_index=len(call.received))
        self.handovers = 0
        self.recoveries = 0
        self._losses = 0
        """Owners that were lost since the last token."""
        self.end: End | None = None
        self.error: Refused | None = None
        self._fleet = fleet
        self._cfg = cfg
        self._handover = handover
        self._pending: deque[Delta] = deque()
        self._news = asyncio.Event()
        self._heard_at = fleet.lived()
        self._nudged_at = 0.0
        self._waits_for_turn = True
        self._told_of_wait = False
        self._counted = len(call.received)
        """Tokens that the tenant has been charged, or got from an earlier attempt."""
        self._dispatch_since: float | None = None
        """Since when no instance could be found."""
        self._destination_due: float | None = None
        """When to look again for a destination."""
        self._destination_since: float | None = None
        """Since when none could be found and no token came."""
        self._moves = SessionMoves(self.key, fleet, cfg.move_wait_s)
        self._began_at = self._first_at = self._token_at = fleet.now()
        self._waits_since = self._began_at
        """Since when it has had no instance."""
        self.foreseen_s = 0.0
        """How long its first token should take, as it seemed when it came."""
        self._sent_at = self._expected_s = 0.0
        """When it was sent to an instance, and how long its first token should take from there."""
        self._maker = ""
        """Who made the last token."""
        self._waits = False
        """Its owner has not begun with it."""

    # ---- the client's side

    def start(self) -> None:
        """It waits for its `turn`."""
        call = self.call
        self._note(
            "received",
            prompt_tokens=len(call.prompt),
            max_tokens=call.params.max_tokens,
            attempt=call.attempt,
            received_tokens=len(call.received),
        )

    def turn(self) -> NoInstance | None:
        """Send it to an instance for the first time; why it must wait on, if it must.

        One that was begun under another router had its turn there.
        """
        if self.closed:
            return None
        found = self._fleet.dispatch(self._shape(), "", in_turn=not self.call.received)
        if isinstance(found, NoInstance) and found.ever:
            if not self._told_of_wait:
                self._told_of_wait = True
                self._note("waiting", reason=found.reason)
            return found
        self._waits_for_turn = False
        self._place(found)
        return None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Each token once, in order. Raises `Refused` where the session ends in an error."""
        while True:
            while self._pending:
                yield self._pending.popleft()
            if self.closed:
                break
            self._news.clear()
            await self._news.wait()
        if self.error is not None:
            raise self.error

    def cancel(self, error: Refused | None = None) -> None:
        """The client has gone, or `error` is to reach it. Every instance that heard of the session drops it."""
        if not self.machine.closed:
            self.error = error
            self._feed(Cancel())

    def abandon(self, error: Refused) -> None:
        """End without asking the protocol's session, which a defect may have left in any state."""
        self.error = error
        self.machine = replace(self.machine, closed=True)
        for instance in self.machine.sent_to:
            self._fleet.tell(instance, Revoke(self.key, Epoch(self.call.attempt, FOREVER)))
        self._news.set()

    @property
    def closed(self) -> bool:
        return self.machine.closed

    def uncounted(self) -> int:
        """Tokens made since the last call."""
        made, self._counted = len(self.emitted) - self._counted, len(self.emitted)
        return made

    @property
    def owner(self) -> str:
        return self.machine.owner.instance if self.machine.owner else ""

    @property
    def is_moving(self) -> bool:
        """A move was asked for, and is not over."""
        return self._moves.under_way

    @property
    def may_move(self) -> bool:
        """It has made a token, and nothing else is under way with it."""
        return self._idle and bool(self._maker) and not self._waits

    @property
    def may_restart(self) -> bool:
        """It may be begun elsewhere at no loss."""
        return self._idle and self.waits

    @property
    def waits(self) -> bool:
        """Its owner has not begun with it, or took its memory back."""
        return self._waits and self.machine.owner is not None

    @property
    def _idle(self) -> bool:
        under_way = self._moves.under_way or self._moves.waiting or self.machine.pending
        return not under_way and self._settled and not self.closed

    # ---- the cluster's side

    def heard(self, sender: Incarnation, message: InstanceMessage) -> None:
        if not self.machine.closed and rules.accepts(self.machine.epoch, message.epoch):
            self._heard_at = self._fleet.lived()
        self._feed(FromInstance(sender, message))
        if isinstance(message, News) and self._is_current(sender, message.epoch):
            if message.refused:
                self.cancel(unserved(f"The request cannot be served: {message.refused}."))
                return
            self._waits = message.waits
            if message.waits and self._fleet.drains(sender):
                self._feed(RecoverAsked(UNBEGUN))
        self._try_move()

    def _is_current(self, sender: Incarnation, epoch: Epoch) -> bool:
        return not self.closed and sender == self.machine.owner and epoch == self.machine.epoch

    def lost(self, instance: Incarnation) -> None:
        if instance == self.machine.owner and not self.closed:
            self._losses += 1
        self._feed(InstanceLost(instance))

    def want_move(self, wanted: MoveWanted) -> None:
        """Begin the move, or wait for what is under way; `Fleet.moved` hears the result."""
        if self.closed or self._moves.waiting:
            reason = "the request ended" if self.closed else "another move was asked for"
            self._fleet.moved(MoveResult(wanted.ask, False, reason, 0.0, self.owner))
            return
        self._moves.ask(wanted)
        self._try_move()

    def tick(self) -> None:
        """Time passes: to be called every heartbeat."""
        if self.closed or self._waits_for_turn:
            return
        now = self._fleet.now()
        if self._dispatch_since is not None:
            self._dispatch("")
        elif self._fleet.lived() - self._heard_at > self._fleet.silence_s(self.machine.owner):
            self._feed(Silent())
        elif self._destination_due is not None and now >= self._destination_due:
            self._find_destination(frozenset())
        elif self.machine.pending is not None and now - self._nudged_at > self._handover.reserve_wait_s:
            self._nudged_at = now
            self._feed(Nudge())
        self._try_move()

    # ---- effects

    def _feed(self, event: SessionEvent) -> None:
        context = self._context() if isinstance(event, Dispatched) else None
        self.machine, effects = self.machine.on(event, context)
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: SessionEffect) -> None:
        match effect:
            case Tell(instance, message):
                self._fleet.tell(instance, message)
            case Deliver():
                self._deliver(effect)
            case NeedDispatch(reason):
                self._recover(reason)
            case NeedDestination(reason, refused):
                self._note("not_taken", by=refused.instance, reason=reason)
                self._find_destination(frozenset({refused}))
            case MoveEnded():
                self.handovers += effect.done
                self._moves.ended(effect)
            case Closed(end):
                self._close(end)

    def _context(self) -> Context:
        call = self.call
        return Context(
            prompt=call.prompt,
            emitted=tuple(self.emitted),
            params=call.params,
            salt=call.tenant,
            application=call.application,
            cache_ttl_s=call.cache_ttl_s,
            priority=call.priority,
        )

    def _shape(self) -> RequestShape:
        return self._fleet.shape(self.call, self.emitted)

    @property
    def _tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.call.prompt) + len(self.emitted)

    def _deliver(self, deliver: Deliver) -> None:
        records, end = deliver.records, deliver.records[-1].end
        if end is End.ASTRAY:
            records, end = records[:-1], None
            self.error = _too_complex(len(self.emitted) + len(records))
        ids = tuple(record.id for record in records)
        assert deliver.first_index == len(self.emitted)
        self.emitted.extend(ids)
        self._destination_since, self._losses = None, 0
        self._note_delivery(deliver.maker.instance, deliver.first_index)
        self._moves.landed(deliver.maker)
        if not records:
            return
        if len(self._pending) >= self._cfg.session_queue and end is None:
            message = f"The client left {len(self._pending)} messages unread."
            self.cancel(Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message))
            return
        logprobs = tuple(record.logprobs for record in records if record.logprobs is not None)
        prompt = records[0].prompt
        made = Delta(deliver.first_index, ids, deliver.maker.instance, end, logprobs, prompt)
        self._pending.append(made)
        self._news.set()

    def _note_delivery(self, maker: str, index: int) -> None:
        """The first token, and the first of each later maker."""
        now = self._fleet.now()
        if not self._maker:
            self._first_at = now
            self._note(
                "first_token", instance=maker, ttft_s=now - self._began_at, expected_s=self._expected_s
            )
            if not self.call.received:
                self._fleet.first_token(self.call, now - self._began_at, self.foreseen_s)
            if not self.recoveries:
                self._fleet.prefilled(self._expected_s, now - self._sent_at)
        elif maker != self._maker:
            self._note("continued", instance=maker, gap_s=now - self._token_at, index=index)
        self._maker, self._token_at = maker, now

    def _close(self, end: End | None) -> None:
        self.end = end
        self._dispatch_since = self._destination_due = None
        self._moves.close("the request ended")
        if end is not None and self.error is None:
            self._fleet.completed(self.call, self.emitted, self.machine.owner, self._tpot_s)
        why = {"error": self.error.message} if self.error else {}
        self._note(
            "ended" if end and self.error is None else "cancelled",
            tokens=len(self.emitted),
            seconds=self._fleet.now() - self._began_at,
            handovers=self.handovers,
            recoveries=self.recoveries,
            **why,
        )
        self._news.set()

    @property
    def _tpot_s(self) -> float:
        """Mean time of a token after the first of this attempt."""
        later = len(self.emitted) - len(self.call.received) - 1
        return (self._token_at - self._first_at) / later if later > 0 else 0.0

    def _note(self, what: str, **figures: float | str) -> None:
        self._fleet.note(self.key, what, **figures)

    # ---- where to

    def _recover(self, reason: str) -> None:
        self.recoveries += reason != UNBEGUN
        self._waits_since = self._fleet.now()
        self._note("recovering", tokens=self._tokens, reason=reason)
        self._destination_due = self._destination_since = None
        if self.recoveries > self._cfg.max_recoveries:
            message = f"The request was recovered {self._cfg.max_recoveries} times, last after: {reason}."
            self.cancel(unserved(message))
            return
        if self._losses >= MOST_LOSSES:
            message = f"{self._losses} instances in a row were lost with the request: {reason}."
            self.cancel(unserved(message))
            return
        self._dispatch(self._moves.recomputed_at)

    def _dispatch(self, wanted: str) -> None:
        """Send it to an instance anew: it had its turn."""
        self._place(self._fleet.dispatch(self._shape(), wanted, in_turn=False))

    def _place(self, found: Assignment | NoInstance) -> None:
        now = self._fleet.now()
        if isinstance(found, NoInstance):
            self._wait_for_instance(found, now)
            return
        self._dispatch_since, self._nudged_at, self._waits = None, now, True
        self._heard_at = self._fleet.lived()
        self._sent_at, self._expected_s = now, found.first_s
        decode = None if found.decode is None else _address(found.decode)
        there = found.decode or found.prefill
        self._note(
            "dispatched",
            prefill=found.prefill.name,
            decode=there.name,
            waited_s=now - self._waits_since,
            queued_tokens=found.prefill.load.queued_tokens,
            prefill_free_blocks=found.prefill.load.free_blocks + found.prefill.load.cached_blocks,
            decode_free_blocks=there.load.free_blocks + there.load.cached_blocks,
            decode_running=there.load.running,
        )
        self._feed(Dispatched(_address(found.prefill), decode))
        self._moves.sent((decode or _address(found.prefill)).incarnation)

    def _wait_for_instance(self, none: NoInstance, now: float) -> None:
        if not none.ever:
            self.cancel(
                Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"The request cannot be served: {none.reason}.")
            )
            return
        if self._dispatch_since is None:
            self._dispatch_since = now
            self._note("waiting", reason=none.reason)
        elif now - self._dispatch_since > self._cfg.dispatch_wait_s:
            self.cancel(unserved(f"The request cannot be served now: {none.reason}."))

    def _find_destination(self, refused: frozenset[Incarnation]) -> None:
        """Another instance than the one that refused; where there is none, the same again after a while."""
        owner = self.machine.owner
        self._moves.refused_by(refused)
        avoid = refused | ({owner} if owner else set())
        found = self._fleet.redirect(self._shape(), avoid, "")
        if isinstance(found, NoInstance):
            self._wait_for_destination(found)
            return
        self._destination_due = self._destination_since = None
        self._nudged_at = self._fleet.now()
        self._note(
            "redirected", decode=found.name, free_blocks=found.load.free_blocks + found.load.cached_blocks
        )
        self._feed(MoveAsked(_address(found), first=True))

    def _wait_for_destination(self, none: NoInstance) -> None:
        """Its owner may decode it meanwhile; where nobody does, the client is not held for ever."""
        now = self._fleet.now()
        self._destination_due = now + RETRY_S
        if self._destination_since is None:
            self._destination_since = now
            self._note("waiting", reason=none.reason)
        elif now - self._destination_since > self._cfg.dispatch_wait_s:
            message = f"The request cannot be served now: {none.reason}."
            self.cancel(unserved(message))

    # ---- moves that were asked for

    def _try_move(self) -> None:
        if self.closed:
            return
        move, machine = self._moves.due(), self.machine
        if move and machine.owner is not None and machine.pending is None and self._settled:
            self._begin_move(move, machine.owner)

    @property
    def _settled(self) -> bool:
        """Nothing is being looked for."""
        return self._dispatch_since is None and self._destination_due is None

    def _begin_move(self, move: SessionMove, owner: Incarnation) -> None:
        move.source = owner.instance
        if move.wanted.mode is Mode.UNBEGUN and not self._waits:
            self._moves.over(False, "it has begun")
            return
        found = self._fleet.redirect(self._shape(), frozenset({owner}), move.wanted.destination)
        if isinstance(found, NoInstance):
            there = move.wanted.destination == owner.instance
            self._moves.over(False, "it runs there already" if there else found.reason)
            return
        to = _address(found)
        move.to = to.incarnation
        self._nudged_at = self._fleet.now()
        self._note(
            "moving",
            source=owner.instance,
            destination=found.name,
            mode=move.wanted.mode.value,
            reason=move.wanted.reason,
            tokens=self._tokens,
            free_blocks=found.load.free_blocks + found.load.cached_blocks,
        )
        if move.wanted.mode is Mode.UNBEGUN:
            self._feed(RecoverAsked(UNBEGUN))
        elif move.wanted.mode is Mode.RECOMPUTE:
            self._feed(RecoverAsked(move.wanted.reason or "asked for"))
        else:
            mode = MoveMode.BLOCKING if move.wanted.mode is Mode.BLOCKING else MoveMode.LIVE
            self._feed(MoveAsked(to, mode))


def _address(view: InstanceView) -> Address:
    return Address(Incarnation(view.name, view.life), view.address)


def _too_complex(tokens: int) -> Refused:
    what = f"after {tokens} tokens of output, finding those that it allows exceeds the limits"
    return invalid("sampling.structured", f"`sampling.structured` is too complex: {what}.")
