"""One choice of one request, as its router keeps it: which epoch is current, who owns, what the client has.

A value: `on(event)` returns the next session and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import rules
from .effects import (
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
from .values import (
    Address,
    Ask,
    Context,
    Epoch,
    Incarnation,
    Move,
    MoveMode,
    News,
    Resume,
    Revoke,
    RouterMessage,
    Seen,
    Start,
    Unmoved,
)


@dataclass(frozen=True, slots=True)
class Pending:
    """A move under way: who will own, under which n."""

    n: int
    destination: Address
    mode: MoveMode
    first: bool
    """The handover that the dispatch itself asked for (prefill to decode)."""


@dataclass(frozen=True, slots=True)
class Session:
    """State of a session. `n <= allotted`; the current epoch is (attempt, n)."""

    key: str
    attempt: int
    next_index: int = 0
    n: int = 0
    allotted: int = 0
    owner: Incarnation | None = None
    sent_to: frozenset[Incarnation] = frozenset()
    pending: Pending | None = None
    closed: bool = False

    @property
    def epoch(self) -> Epoch:
        return Epoch(self.attempt, self.n)

    def on(self, event: SessionEvent, context: Context | None = None) -> tuple[Session, list[SessionEffect]]:
        """Next state and effects. `context` (prompt and output so far) is needed where the event is `Dispatched`."""
        match event:
            case FromInstance(sender, News() as news):
                return self._heard(sender, news)
            case FromInstance(sender, Unmoved() as unmoved):
                return self._unmoved(sender, unmoved)
            case FromInstance(sender, Ask() as ask):
                return self._asked(sender, ask)
            case _ if self.closed:
                return self, []
            case Dispatched():
                assert context is not None
                return self._dispatch(event, context)
            case MoveAsked():
                return self._move(event)
            case InstanceLost(instance):
                return (
                    self._recover(f"{instance.instance} was lost") if instance == self.owner else (self, [])
                )
            case Silent():
                return self._recover("silence") if rules.recovers_on_silence() else (self, [])
            case RecoverAsked(reason):
                return self._recover(reason)
            case Nudge():
                return self, self._retell_move()
            case Cancel():
                return self._cancel()
        raise AssertionError(f"unknown event {event!r}")

    # ---- what instances say

    def _heard(self, sender: Incarnation, news: News) -> tuple[Session, list[SessionEffect]]:
        if self.closed or not rules.accepts(self.epoch, news.epoch):
            return self, [self._answer_old(sender, news.epoch)]
        session, effects = self._switch(sender, news.epoch)
        fresh = rules.unseen(news.records, news.first_index, self.next_index)
        if news.first_index > self.next_index:
            fresh = ()  # a gap: the owner restates from what was seen
        if fresh:
            effects.append(Deliver(self.next_index, fresh, sender))
            session = replace(session, next_index=self.next_index + len(fresh))
        if news.records or news.first_index != session.next_index:
            effects.append(Tell(sender, Seen(self.key, self.attempt, session.next_index)))
        if fresh and fresh[-1].end is not None:
            return session._close(effects, fresh[-1].end)
        return session, effects

    def _switch(self, sender: Incarnation, epoch: Epoch) -> tuple[Session, list[SessionEffect]]:
        """The sender owns under `epoch`, current or higher."""
        if epoch.n == self.n:
            return (self if self.owner == sender else replace(self, owner=sender)), []
        session = replace(self, n=epoch.n, owner=sender)
        if self.pending is None or self.pending.n > epoch.n:
            return session, []
        done = self.pending.n == epoch.n
        ended = MoveEnded(self.pending.destination.incarnation, done, "" if done else "superseded")
        return replace(session, pending=None), [ended]

    def _unmoved(self, sender: Incarnation, unmoved: Unmoved) -> tuple[Session, list[SessionEffect]]:
        if self.closed or not rules.accepts(self.epoch, unmoved.epoch):
            return self, [self._answer_old(sender, unmoved.epoch)]
        pending = self.pending
        if pending is None or pending.n != unmoved.next_epoch.n or unmoved.epoch != self.epoch:
            return self, []
        session = replace(self, pending=None, owner=sender)
        refused = pending.destination.incarnation
        if pending.first:
            return session, [NeedDestination(unmoved.reason, refused)]
        return session, [MoveEnded(refused, False, unmoved.reason)]

    def _asked(self, sender: Incarnation, ask: Ask) -> tuple[Session, list[SessionEffect]]:
        """Rule 4: while the asked epoch is current nobody has adopted, and raising it makes sure that nobody will."""
        if self.closed or ask.epoch != self.epoch:
            return self, [self._answer_old(sender, ask.epoch)]
        session, effects = self._settle("the commit was not adopted")
        session = replace(session, owner=sender)
        effects.append(Tell(sender, Resume(self.key, ask.epoch, session.epoch)))
        if self.pending is not None and self.pending.first:  # it cannot stay where it was prefilled
            refused = self.pending.destination.incarnation
            effects.append(NeedDestination("the commit was not adopted", refused))
        return session, effects

    def _answer_old(self, sender: Incarnation, epoch: Epoch) -> Tell:
        current = self.epoch if epoch.attempt <= self.attempt else Epoch(epoch.attempt, 0)
        closed = self.closed or epoch.attempt > self.attempt
        return Tell(sender, Revoke(self.key, rules.bound(current, closed)))

    # ---- what the router decides

    def _dispatch(self, event: Dispatched, context: Context) -> tuple[Session, list[SessionEffect]]:
        n = self.allotted + 1
        allotted, pending, next_epoch = n, None, None
        sent_to = self.sent_to | {event.prefill.incarnation}
        if event.decode is not None:
            allotted = n + 1
            next_epoch = Epoch(self.attempt, allotted)
            pending = Pending(allotted, event.decode, MoveMode.LIVE, first=True)
            sent_to |= {event.decode.incarnation}
        session = replace(
            self,
            n=n,
            allotted=allotted,
            owner=event.prefill.incarnation,
            sent_to=sent_to,
            pending=pending,
        )
        start = Start(self.key, session.epoch, context, event.decode, next_epoch)
        return session, [Tell(event.prefill.incarnation, start)]

    def _move(self, event: MoveAsked) -> tuple[Session, list[SessionEffect]]:
        destination = event.destination.incarnation
        if self.owner is None or self.pending is not None or destination == self.owner:
            reason = "it runs there already" if destination == self.owner else "another handover is under way"
            return self, [MoveEnded(destination, False, reason)]
        n = self.allotted + 1
        session = replace(
            self,
            allotted=n,
            sent_to=self.sent_to | {destination},
            pending=Pending(n, event.destination, event.mode, event.first),
        )
        return session, session._retell_move()

    def _retell_move(self) -> list[SessionEffect]:
        if self.pending is None or self.owner is None:
            return []
        next_epoch = Epoch(self.attempt, self.pending.n)
        move = Move(self.key, self.epoch, next_epoch, self.pending.destination, self.pending.mode)
        return [Tell(self.owner, move)]

    def _settle(self, reason: str) -> tuple[Session, list[SessionEffect]]:
        """Raise the epoch above all that were ever allotted, so that whoever had a claim has none."""
        n = rules.settled_n(self.n, self.allotted)
        session = replace(self, n=n, allotted=max(n, self.allotted), pending=None)
        if self.pending is None:
            return session, []
        return session, [MoveEnded(self.pending.destination.incarnation, False, reason)]

    def _recover(self, reason: str) -> tuple[Session, list[SessionEffect]]:
        session, effects = self._settle(reason)
        session = replace(session, owner=None)
        effects += session._tell_all(Revoke(self.key, rules.bound(session.epoch, False)))
        return session, [*effects, NeedDispatch(reason)]

    def _cancel(self) -> tuple[Session, list[SessionEffect]]:
        session, effects = self._settle("cancelled")
        return session._close(effects, None)

    def _close(self, effects: list[SessionEffect], end) -> tuple[Session, list[SessionEffect]]:
        session = replace(self, closed=True, pending=None)
        if self.pending is not None:
            effects.append(MoveEnded(self.pending.destination.incarnation, False, "the request ended"))
        effects += session._tell_all(Revoke(self.key, rules.bound(session.epoch, True)))
        return session, [*effects, Closed(end)]

    def _tell_all(self, message: RouterMessage) -> list[SessionEffect]:
        return [Tell(instance, message) for instance in sorted(self.sent_to)]
