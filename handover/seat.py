"""One session's seat at one instance: its mark, the sequence it owns here, the handovers out and the leases in.

A value: `on(event)` returns the next seat and what to do. The driver keeps one seat a session and feeds it one event
at a time.
"""

from __future__ import annotations

from dataclasses import replace

from . import rules
from .effects import (
    Beat,
    Begin,
    Drop,
    FromPeer,
    FromRouter,
    InstanceEffect,
    InstanceEvent,
    Launched,
    Leased,
    PeerLost,
    Preempted,
    Received,
    RouterSilent,
    Stepped,
    Timeout,
    ToRouter,
    Written,
)
from .holding import Holding, Progress
from .house import House
from .peering import Peering
from .source import Source
from .source import State as SourceState
from .values import Epoch, LeaseKey, Move, News, Resume, Revoke, RouterMessage, Seen, Start, Unmoved


class Seat(Peering):
    """The whole of it: what the router and the steps say, too."""

    __slots__ = ()

    def on(self, event: InstanceEvent, house: House) -> tuple[Seat, list[InstanceEffect]]:
        """Next state and effects, to be carried out in order."""
        seat, effects = self._on(event, house)
        return seat._reap(effects) if seat.doomed else (seat, effects)

    def _on(self, event: InstanceEvent, house: House) -> tuple[Seat, list[InstanceEffect]]:
        match event:
            case FromRouter(router, message):
                return self._from_router(router, message, house)
            case FromPeer(_, message):
                return self._from_peer(message, house)
            case Launched():
                assert self.holding is not None
                launched = (*self.launched, self.holding.epoch)
                return self._replace(launched=launched, holding=self.holding._replace(begun=True)), []
            case Stepped():
                return self._stepped(event, house)
            case Preempted():
                return self._preempted()
            case Leased(lease, granted, have):
                return self._leased(lease, granted, have, house)
            case Written(lease, ok):
                return self._written(lease, ok, house)
            case Received(lease, first, count, ok):
                return self._received(lease, first, count, ok, house)
            case Timeout(clock, lease):
                return self._timeout(clock, lease)
            case PeerLost(peer):
                return self._peer_lost(peer)
            case Beat():
                seat, effects = self._turn_away() if house.draining else (self, [])
                return seat, effects + seat._restate()
            case RouterSilent():
                return self._drop_holding() if rules.drops_for_silent_router() else (self, [])
        raise AssertionError(f"unknown event {event!r}")

    # ---- the router speaks

    def _from_router(
        self, router: str, message: RouterMessage, house: House
    ) -> tuple[Seat, list[InstanceEffect]]:
        match message:
            case Start():
                return self._start(router, message, house)
            case Move():
                return self._move(message, house)
            case Resume():
                return self._resume(message)
            case Revoke(_, bound):
                return self._revoke(bound)
            case Seen(_, attempt, next_index):
                return self._seen(router, attempt, next_index)
        raise AssertionError(f"unknown message {message!r}")

    def _start(self, router: str, start: Start, house: House) -> tuple[Seat, list[InstanceEffect]]:
        if not rules.fresh(self.mark, start.epoch):
            return self, []
        seat, effects = self._clear_below(start.epoch)
        made = len(start.context.emitted)
        seat = seat._replace(
            mark=start.epoch,
            holding=Holding(start.epoch, router, made, made, made),
            unmoved=None,
        )
        if start.destination is not None and start.next_epoch is not None:
            move = Move(self.session, start.epoch, start.next_epoch, start.destination)
            seat = seat._plan(move, house)
        accepted = News(self.session, start.epoch, made, waits=True)
        return seat, [*effects, Begin(start), ToRouter(router, accepted)]

    def _plan(self, move: Move, house: House) -> Seat:
        assert self.holding is not None
        one_sided = move.destination.incarnation.instance in house.reaches
        lease = LeaseKey(self.session, move.next_epoch)
        source = Source(
            house.me, self.holding.router, move.epoch, lease, move.destination, move.mode, one_sided
        )
        return self._replace(sources=(*self.sources, source))

    def _move(self, move: Move, house: House) -> tuple[Seat, list[InstanceEffect]]:
        holding, source = self.holding, self.source
        if holding is None or holding.epoch != move.epoch or holding.ended:
            return self, []
        if source is not None and source.lease.epoch >= move.next_epoch:
            return self, []  # told again
        if self.unmoved is not None and self.unmoved.next_epoch >= move.next_epoch:
            return self, [ToRouter(holding.router, self.unmoved)]
        if move.destination.incarnation == house.me or source is not None:
            reason = "it runs there already" if source is None else "another handover is under way"
            unmoved = Unmoved(self.session, move.epoch, move.next_epoch, reason)
            return self._replace(unmoved=unmoved), [ToRouter(holding.router, unmoved)]
        return self._plan(move, house)._reserve_if_begun([])

    def _resume(self, resume: Resume) -> tuple[Seat, list[InstanceEffect]]:
        source, holding = self.source, self.holding
        if source is None or holding is None or source.state is not SourceState.COMMITTING:
            return self, []
        if holding.epoch != resume.asked or not rules.fresh(self.mark, resume.epoch):
            return self, []
        seat, dropped = self._drop_leases(lambda lease: lease.lease.epoch < resume.epoch)
        ended, effects = source.resume(resume.epoch)
        seat = seat._replace(mark=resume.epoch, holding=holding._replace(epoch=resume.epoch))
        seat = seat._put_source(ended)._rename(resume.asked, resume.epoch)
        return seat, [*dropped, *effects, *seat._restate()]

    def _rename(self, was: Epoch, epoch: Epoch) -> Seat:
        """Earlier handovers of the sequence may still read it: they follow its new epoch."""
        sources = (replace(known, epoch=epoch) if known.epoch == was else known for known in self.sources)
        return self._replace(sources=tuple(sources))

    def _revoke(self, bound: Epoch) -> tuple[Seat, list[InstanceEffect]]:
        seat = self._replace(mark=bound) if self.mark is None or bound > self.mark else self
        effects: list[InstanceEffect] = []
        if seat.holding is not None and seat.holding.epoch <= bound:
            seat, effects = seat._drop_holding()
        seat, more = seat._drop_leases(lambda lease: lease.lease.epoch <= bound)
        return seat, effects + more

    def _seen(self, router: str, attempt: int, next_index: int) -> tuple[Seat, list[InstanceEffect]]:
        holding = self.holding
        if holding is None:
            return self, []
        if not rules.believes_seen(holding.router, holding.epoch.attempt, router, attempt):
            return self, []
        seen = max(holding.seen, min(next_index, holding.made))
        if holding.ended and rules.may_forget(seen, holding.made):
            return self._replace(holding=None), []
        return self._replace(holding=holding._replace(seen=seen).trimmed(self.source)), []

    def _reserve_if_begun(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """A reservation waits for the first completed step: what only queues needs no room elsewhere."""
        source, holding = self.source, self.holding
        if source is None or holding is None or holding.progress is None:
            return self, effects
        now = holding.progress
        source = source.progress(now.full, now.blocks, now.computed, now.ready)
        if source.state is SourceState.PLANNED:
            source, more = source.reserve(holding.made, now.passed)
            effects = effects + more
        return self._put_source(source), effects

    # ---- steps

    def _stepped(self, step: Stepped, house: House) -> tuple[Seat, list[InstanceEffect]]:
        holding, launched = self.holding, self.launched[1:]
        if holding is None or holding.epoch != self.launched[0] or holding.ended:
            return self._replace(
                launched=launched
            ), []  # the sequence has gone since, or ended in the step before
        effects: list[InstanceEffect] = []
        ended = bool(step.records) and step.records[-1].end is not None
        now = Progress(step.full, step.blocks, step.computed, step.ready, step.passed)
        records, told = holding.records + step.records, holding.told
        if step.records:
            untold = rules.unseen(records, holding.first, told)
            effects.append(ToRouter(holding.router, News(self.session, holding.epoch, told, untold)))
            told = holding.first + len(records)
        first = holding.needed(self.source)
        kept = rules.unseen(records, holding.first, first)
        holding = holding._replace(first=first, records=kept, told=told, ended=ended, progress=now)
        seat = self._replace(launched=launched, holding=holding)
        if ended:
            return seat._finish(effects)
        seat, effects = seat._reserve_if_begun(effects)
        return seat._advance(effects, house)

    def ran(self, step: Stepped) -> tuple[Seat, list[InstanceEffect]]:
        """What `step`, which ends nothing, comes to where this seat is `plain`; and `Launched` before it, if untold.

        It is most of what happens, and a shorter way.
        """
        was, effects = self.holding, []
        assert was is not None and self.plain
        records, told = was.records + step.records, was.told
        if step.records:
            untold = rules.unseen(records, was.first, told)
            effects.append(ToRouter(was.router, News(self.session, was.epoch, told, untold)))
            told = was.first + len(records)
        first = max(was.first, was.seen)
        records = rules.unseen(records, was.first, first)
        now = Progress(step.full, step.blocks, step.computed, step.ready, step.passed)
        holding = Holding(was.epoch, was.router, first, was.seen, told, records, False, now, True)
        return Seat(
            self.session, self.mark, holding, launched=self.launched[1:], unmoved=self.unmoved
        ), effects

    def _preempted(self) -> tuple[Seat, list[InstanceEffect]]:
        """A handover that has begun ends: what is to be computed again may need more room than it was given."""
        assert self.may_preempt and self.holding is not None
        seat = self._replace(holding=self.holding._replace(progress=None, begun=False))
        if self.source is None or self.source.state is SourceState.PLANNED:
            return seat, []
        return seat._failed(*self.source.abort("its memory was needed"))

    def _finish(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """The last token is made: the KV may go, the records stay until seen."""
        assert self.holding is not None
        seat = self._replace(doomed=self.doomed | {self.holding.epoch})
        if self.source is not None:
            gone, more = self.source.abandon()
            seat, effects = seat._put_source(gone), effects + more
        if rules.may_forget(self.holding.seen, self.holding.made):
            seat = seat._replace(holding=None)
        return seat, effects

    def _reap(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """Free the doomed sequences that no step and no transfer touches any more."""
        reading = {source.epoch for source in self.sources if source.writing is not None}
        free = frozenset(
            epoch
            for epoch in self.doomed
            if rules.may_free_read(epoch in reading) and rules.may_free_stepped(epoch in self.launched)
        )
        return self._replace(doomed=self.doomed - free), [*effects, *map(Drop, sorted(free))]
