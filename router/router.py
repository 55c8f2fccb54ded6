"""The router's state: the sessions that it holds and the instances that it is linked to. One event loop owns it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import grpc

from ..handover.config import HandoverConfig
from ..handover.recall import sessions_of
from ..handover.values import FOREVER, Epoch, Incarnation, InstanceMessage, Revoke, RouterMessage
from ..policy import dispatch as policy
from ..policy import forecast
from ..policy.dispatch import Assignment, DispatchConfig, Memory, NoInstance
from ..policy.journal import Decision, Journal
from ..policy.state import InstanceView, RequestShape
from .attainment import Attainment
from .config import ModelInfo, RouterConfig
from .evacuation import OWN, evacuate
from .fleet import MoveResult, MoveWanted
from .known import Known
from .links import Links
from .refusal import Refused, overloaded, unserved
from .session import LiveSession
from .turns import Foreseen, Turns, slo_of
from .vital import vital
from .wire import Call

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORGET_AFTER = 4096
"""Ended requests whose ids are remembered at most."""

UNTOLD = 1024
"""Reports kept at most for a controller that is away."""

TURNS_S = 0.01
"""How soon after news of instances those that wait are looked at."""

STALL_BEATS = 2
"""A tick later than that means that this process stood still."""


class Router:
    """Opens and closes sessions, and passes what instances say to them. Construct inside a running event loop."""

    session_class = LiveSession

    def __init__(self, name: str, config: RouterConfig, handover: HandoverConfig, model: ModelInfo):
        self.name = name
        self.config = config
        self.handover = handover
        self.model = model
        self.sessions: dict[str, LiveSession] = {}
        self.links = Links(name, handover, config.link_queue, self, model)
        self.moves: deque[MoveResult] = deque(maxlen=UNTOLD)
        """Results that the controller has not been told yet."""
        self.lost_instances: deque[tuple[Incarnation, bool]] = deque(maxlen=UNTOLD)
        """Instances that the controller is to hear of, and whether they are condemned."""
        self.journal = Journal(name, time.time)
        self.recalled: deque[tuple[int, list[Decision]]] = deque(maxlen=UNTOLD)
        """Answers that the controller is to be given, by its ask."""
        self._idle = asyncio.Event()
        """No session is open."""
        self._idle.set()
        self._stood_still_s = 0.0
        self._memory = Memory()
        target_s = model.itl_target_s or config.normal.tpot_s
        self._dispatch = DispatchConfig(rule=config.dispatch, ahead_s=config.ahead_s, itl_target_s=target_s)
        self._known = Known(follows=model.cost is not None and config.dispatch == "predicted")
        self._turns = Turns(config)
        self._turns_due = False
        self._held_back: NoInstance | None = None
        """Why the first that waits could not be placed when last tried."""
        self.attainment = Attainment()
        self._late = 1.0
        """How many times as long as is foreseen when they come first tokens take."""
        self._ended: dict[str, tuple[int, float]] = {}
        """Request id to its last attempt and when that ended, oldest first."""
        self._ticker = vital(self._tick(), "router ticks")

    # ---- sessions

    def open(self, calls: Sequence[Call]) -> list[LiveSession]:
        """A session, started, for each of these choices of one request. Raises `Refused`; close them in the end."""
        replaced = self._held(calls[0].request_id)
        try:
            self._check_attempt(calls[0], replaced)
            self._check_room(len(self.sessions) - len(replaced), len(calls))
            foreseen = self._check_turn(calls[0], len(calls), {session.key for session in replaced})
        except Refused as refused:
            self.note(calls[0].session, "refused", code=refused.code.name, reason=refused.message)
            raise
        for session in replaced:
            message = f"The request was resumed as attempt {calls[0].attempt}."
            session.cancel(Refused(grpc.StatusCode.ABORTED, message))
            self._forget(session)
        sessions = [self.session_class(call, self, self.config, self.handover) for call in calls]
        self.sessions |= {session.key: session for session in sessions}
        self._idle.clear()
        for session in sessions:
            session.foreseen_s = foreseen.first_s
            self._turns.enter(session.call, self.now())
            self._guarded(session, session.start)
        self._have_turns()
        return sessions

    def close(self, session: LiveSession) -> None:
        """The client has all that it will get."""
        session.cancel()
        self._forget(session)
        if not self.sessions:
            self._idle.set()
        attempt, _ = self._ended.pop(session.call.request_id, (0, 0.0))
        self._ended[session.call.request_id] = (max(attempt, session.call.attempt), self.now())
        if len(self._ended) > FORGET_AFTER:
            del self._ended[next(iter(self._ended))]

    def _forget(self, session: LiveSession) -> None:
        if self.sessions.get(session.key) is session:
            del self.sessions[session.key]
            self._turns.made(session.call.tenant, session.uncounted())
            self._turns.leave(session.call)
            self._have_turns_soon()

    def _check_room(self, others: int, more: int) -> None:
        if others + more > self.config.max_sessions:
            message = f"{others} sessions are open, and no {more} more are taken."
            raise overloaded(message, self.config.ahead_s)

    def _check_turn(self, call: Call, choices: int, replaced: Collection[str]) -> Foreseen:
        views = self.links.views()
        none = policy.unservable(self.shape(call, call.received), views)
        if none is not None:
            message = f"The request cannot be served: {none.reason}."
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        self._memory = policy.unseen(self._memory, views, self.now())
        pace = forecast.pace(views, self._memory.given(), self.model.cost, self._dispatch.lag)
        foreseen = self._turns.foresee(call, replaced, pace, self.now())
        refusal = self._turns.refusal(call, choices, replaced, foreseen, self._late)
        if refusal is not None:
            self.attainment = self.attainment.missed(self._waits_to_decode())
            raise overloaded(f"The cluster is busy: {refusal.reason}.", refusal.retry_s)
        return foreseen

    def _check_attempt(self, call: Call, held: Sequence[LiveSession]) -> None:
        """A later attempt takes over from an earlier one; the same or an earlier one is refused."""
        attempt, ended_at = self._ended.get(call.request_id, (0, 0.0))
        if self.now() - ended_at > self.handover.grace_s:
            attempt = 0  # no instance remembers it either
        last = max((session.call.attempt for session in held), default=attempt)
        if call.attempt <= last:
            message = f"Attempt {last} of request {call.request_id!r} was made already."
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, message, "request_id")

    def _held(self, request_id: str) -> list[LiveSession]:
        return [held for held in self.sessions.values() if held.call.request_id == request_id]

    def want_move(self, wanted: MoveWanted) -> None:
        """Move a session; the result is appended to `moves` in the end."""
        session = self.sessions.get(wanted.session)
        if session is None:
            self.moved(MoveResult(wanted.ask, False, "the request ended", 0.0, ""))
        else:
            self._guarded(session, lambda: session.want_move(wanted))

    def recall(self, ask: int, request_id: str) -> None:
        """Tell the controller what is remembered of a request."""
        self.recalled.append((ask, self.journal.of(sessions_of(request_id))))

    # ---- turns

    def _have_turns(self) -> None:
        """Those that wait are sent to instances, one after the other, as long as one may have more."""
        while (key := self._turns.first()) is not None:
            session = self.sessions[key]
            self._held_back = self._guarded(session, session.turn)
            if self._held_back is not None:
                return
            if session.closed:
                self._turns.gave_up(key)
            else:
                self._turns.placed(key, self.now())

    def _have_turns_soon(self) -> None:
        """Something may have changed; it often does."""
        if len(self._turns) and not self._turns_due:
            self._turns_due = True
            asyncio.get_running_loop().call_later(TURNS_S, self._have_due_turns)

    def _have_due_turns(self) -> None:
        self._turns_due = False
        self._have_turns()

    def _refuse_overdue(self) -> None:
        """Nobody waits for its turn without end."""
        none, limit_s = self._held_back, self.config.dispatch_wait_s
        for key in self._turns.overdue(self.now() - limit_s):
            if none is None or none.busy:
                self.attainment = self.attainment.missed(self._waits_to_decode())
                error = overloaded(f"The request has waited {limit_s:g} s for its turn.", limit_s)
            else:
                error = unserved(f"The request cannot be served now: {none.reason}.")
            self.sessions[key].cancel(error)
            self._turns.gave_up(key)

    def _waits_to_decode(self) -> bool:
        none, _ = self.waiting()
        return none is not None and none.decoding

    # ---- instances

    def set_instances(self, listed: Sequence[InstanceView]) -> None:
        """Every instance that may be used, whole; one that is missing is lost."""
        self.links.set_instances(listed)
        self._known.keep([view.key for view in listed])
        self._evacuate()

    def serving(self) -> bool:
        """Whether a new request would find an instance to prefill it and one to decode it."""
        views = self.links.views()
        return any(view.may_prefill for view in views) and any(view.may_decode for view in views)

    def heard(self, sender: Incarnation, message: InstanceMessage) -> None:
        session = self.sessions.get(message.session)
        if session is None:
            never_known = Epoch(message.epoch.attempt, FOREVER)
            self.links.tell(sender, Revoke(message.session, never_known))
        else:
            self._guarded(session, lambda: session.heard(sender, message))
        self._have_turns_soon()

    def waiting(self) -> tuple[NoInstance | None, int]:
        """Why the first waits whose turn it is, and how many wait."""
        return self._held_back if len(self._turns) else None, len(self._turns)

    def lost(self, instance: Incarnation, reason: str) -> None:
        logger.warning("%s is lost: %s", instance, reason)
        self.lost_instances.append((instance, False))
        for session in list(self.sessions.values()):
            self._guarded(session, lambda session=session: session.lost(instance))

    def condemned(self, writer: Incarnation) -> None:
        logger.warning("%s is condemned: it does not answer `stop`", writer)
        self.lost_instances.append((writer, True))

    # ---- what sessions ask for

    def now(self) -> float:
        return time.monotonic()

    def lived(self) -> float:
        """The clock for others' silence. It leaves out when this process stood still and could hear nobody."""
        return self.now() - self._stood_still_s

    def tell(self, instance: Incarnation, message: RouterMessage) -> None:
        self.links.tell(instance, message)

    def shape(self, call: Call, emitted: Sequence[int]) -> RequestShape:
        return self._known.shape(call, emitted, self.links.block_size)

    def dispatch(self, request: RequestShape, wanted: str, in_turn: bool) -> Assignment | NoInstance:
        promised = slo_of(self.config, request.priority)
        limits = {"tpot_s": promised.tpot_s} if in_turn else {"ahead_s": 0.0}
        cfg = replace(self._dispatch, **limits)
        seed, cost = secrets.randbits(32), self.model.cost
        found, self._memory = policy.dispatch(
            request, self.links.views(), cfg, self.now(), cost, seed, self._memory, wanted
        )
        if isinstance(found, Assignment):
            self._known.placed(request, found.prefill)
            self._known.placed(request, found.decode or found.prefill)
        return found

    def redirect(
        self, request: RequestShape, avoid: frozenset[Incarnation], wanted: str
    ) -> InstanceView | NoInstance:
        found, self._memory = policy.redirect(
            request, self.links.views(), avoid, self.now(), secrets.randbits(32), self._memory, wanted
        )
        return found

    def silence_s(self, owner: Incarnation | None) -> float:
        """Longer where one step takes longer: an instance may not speak in the middle of one."""
        step_s = self.links.step_s(owner) if owner else 0.0
        return max(self.handover.silence_s, 4 * step_s)

    def remaining_tokens(self, session: LiveSession) -> int:
        """Output that it is expected to make yet."""
        return self._known.remaining(session.call, len(session.emitted))

    def first_token(self, call: Call, ttft_s: float, foreseen_s: float) -> None:
        self._late = forecast.lag(self._late, foreseen_s, ttft_s, forecast.LATE_SHARE)
        slo = slo_of(self.config, call.priority)
        self.attainment = self.attainment.first_token(ttft_s, slo, self._waits_to_decode())

    def prefilled(self, expected_s: float, took_s: float) -> None:
        lag = forecast.lag(self._dispatch.lag, expected_s, took_s)
        self._dispatch = replace(self._dispatch, lag=lag)

    def completed(self, call: Call, emitted: Sequence[int], owner: Incarnation | None, tpot_s: float) -> None:
        self.attainment = self.attainment.output(tpot_s, slo_of(self.config, call.priority))
        self._known.ended(call, emitted, self.links.view(owner) if owner else None)

    def drains(self, instance: Incarnation) -> bool:
        return self.links.drains(instance)

    def moved(self, result: MoveResult) -> None:
        if result.ask != OWN:
            self.moves.append(result)
        elif result.done:
            asyncio.get_running_loop().call_soon(self._evacuate)

    def _evacuate(self) -> None:
        for session, wanted in evacuate(self.sessions.values(), self.links.views()):
            self._guarded(session, lambda session=session, wanted=wanted: session.want_move(wanted))

    def note(self, session: str, what: str, **figures: float | str) -> None:
        decision = self.journal.note(session, what, **figures)
        logger.info("%s: %s", session, decision, extra={"decision": decision})

    # ---- time

    async def _tick(self) -> None:
        beat_s = self.handover.heartbeat_s
        while True:
            slept_at = self.now()
            await asyncio.sleep(beat_s)
            self._stood_still_s += max(0.0, self.now() - slept_at - STALL_BEATS * beat_s)
            for session in list(self.sessions.values()):
                self._guarded(session, session.tick)
                self._turns.made(session.call.tenant, session.uncounted())
            for work in (self._turns.settle, self._have_turns, self._refuse_overdue, self._evacuate):
                self._attempted(work)

    def _attempted(self, work: Callable[[], None]) -> None:
        """A defect in what is done for all keeps no session from its ticks."""
        try:
            work()
        except Exception:  # noqa: BLE001  it is tried again at the next tick
            logger.exception("a defect of the router")

    def _guarded(self, session: LiveSession, action: Callable[[], T]) -> T | None:
        """A defect that shows in one session ends that session alone."""
        try:
            return action()
        except Exception:  # noqa: BLE001  the session's work ends here
            logger.exception("%s: a defect of the router", session.key)
            session.abandon(Refused(grpc.StatusCode.INTERNAL, "The router met a defect of its own."))
            return None

    async def drained(self, timeout_s: float) -> None:
        """Wait until no session is open, or for so long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.info("%d sessions are still open", len(self.sessions))

    async def stop(self) -> None:
        self._ticker.cancel()
        for session in list(self.sessions.values()):
            session.cancel(Refused(grpc.StatusCode.UNAVAILABLE, "The router stops."))
        await self.links.close()
