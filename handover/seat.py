"""One session's seat at one instance: its mark, the sequence it owns here, the handovers out and the leases in.

A value: `on(event)` returns the next seat and what to do. The driver keeps one seat a session and feeds it one event
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import rules
from .config import HandoverConfig
from .destination import Destination
from .destination import State as LeaseState
from .effects import (
    Adopt,
    Beat,
    Begin,
    Clock,
    Drop,
    FromPeer,
    FromRouter,
    InstanceEffect,
    InstanceEvent,
    Launched,
    Leased,
    Pause,
    PeerLost,
    Preempted,
    Received,
    RouterSilent,
    Stepped,
    Timeout,
    ToPeer,
    ToRouter,
    Written,
)
from .replaced import replace
from .source import Source
from .source import State as SourceState
from .values import (
    Committed,
    Epoch,
    Grant,
    Incarnation,
    Layout,
    LeaseKey,
    Move,
    News,
    PeerMessage,
    Refuse,
    Reserve,
    Resume,
    Revoke,
    RouterMessage,
    Seen,
    Stage,
    Start,
    Stop,
    Stopped,
    TokenRecord,
    Unmoved,
    Wait,
)


@dataclass(frozen=True, slots=True)
class House:
    """What all seats of one incarnation share."""

    me: Incarnation
    fingerprint: str
    layout: Layout
    config: HandoverConfig
    reaches: frozenset[str] = frozenset()
    """Instances whose memory this one writes in place."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the sequence's KV is, in blocks of its table and in tokens; see `Stepped`."""

    full: int
    blocks: int
    computed: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Holding:
    """The sequence owned here, its records from index `first` on.

    The router has seen what lies before `seen`, and was told what lies before `told`.
    """

    epoch: Epoch
    router: str
    first: int
    seen: int
    told: int
    records: tuple[TokenRecord, ...] = ()
    ended: bool = False
    progress: Progress | None = None

    @property
    def made(self) -> int:
        return self.first + len(self.records)

    def since(self, index: int) -> tuple[TokenRecord, ...]:
        return rules.unseen(self.records, self.first, index)

    def trimmed(self, source: Source | None) -> Holding:
        """Without the records that neither the router nor a destination will ask for again."""
        first = self.needed(source)
        return self if first == self.first else replace(self, first=first, records=self.since(first))

    def needed(self, source: Source | None) -> int:
        """The first token that the router or a destination may still ask for, of those that are here."""
        return max(self.first, self.seen if source is None else min(self.seen, source.reserved_at))


@dataclass(frozen=True, slots=True)
class Seat:
    session: str
    mark: Epoch | None = None
    holding: Holding | None = None
    sources: tuple[Source, ...] = ()
    """Handovers out; at most one is active, the others wait for a write to end."""
    leases: tuple[Destination, ...] = ()
    launched: Epoch | None = None
    """The sequence that the step in flight may write."""
    doomed: frozenset[Epoch] = frozenset()
    """Sequences that go as soon as no step and no transfer touches their blocks."""
    unmoved: Unmoved | None = None
    """The last move that failed, to be told again where the router asks again."""

    @property
    def empty(self) -> bool:
        """Nothing is held but the mark."""
        return self.holding is None and not self.sources and not self.leases and not self.doomed

    @property
    def source(self) -> Source | None:
        """The handover out that is under way."""
        return self.sources[-1] if self.sources and self.sources[-1].active else None

    @property
    def may_preempt(self) -> bool:
        """The sequence is owned here and goes on, and no step and no transfer touches its blocks."""
        holding, source = self.holding, self.source
        if holding is None or holding.ended or (source is not None and source.paused):
            return False
        reading = any(known.writing is not None and known.epoch == holding.epoch for known in self.sources)
        return rules.may_free_read(reading) and rules.may_free_stepped(self.launched == holding.epoch)

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
                return replace(self, launched=self.holding.epoch), []
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
                return self, self._restate()
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
        seat = replace(
            seat,
            mark=start.epoch,
            holding=Holding(start.epoch, router, made, made, made),
            unmoved=None,
        )
        if start.destination is not None and start.next_epoch is not None:
            move = Move(self.session, start.epoch, start.next_epoch, start.destination)
            seat = seat._plan(move, house)
        return seat, [*effects, Begin(start), ToRouter(router, News(self.session, start.epoch, made))]

    def _plan(self, move: Move, house: House) -> Seat:
        assert self.holding is not None
        one_sided = move.destination.incarnation.instance in house.reaches
        lease = LeaseKey(self.session, move.next_epoch)
        source = Source(
            house.me, self.holding.router, move.epoch, lease, move.destination, move.mode, one_sided
        )
        return replace(self, sources=(*self.sources, source))

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
            return replace(self, unmoved=unmoved), [ToRouter(holding.router, unmoved)]
        return self._plan(move, house)._reserve_if_begun([])

    def _reserve_if_begun(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """A reservation waits for the first completed step: what only queues needs no room elsewhere."""
        source, holding = self.source, self.holding
        if source is None or holding is None or holding.progress is None:
            return self, effects
        now = holding.progress
        source = source.progress(now.full, now.blocks, now.computed, now.ready)
        if source.state is SourceState.PLANNED:
            source, more = source.reserve(holding.made)
            effects = effects + more
        return self._put_source(source), effects

    def _resume(self, resume: Resume) -> tuple[Seat, list[InstanceEffect]]:
        source, holding = self.source, self.holding
        if source is None or holding is None or source.state is not SourceState.COMMITTING:
            return self, []
        if holding.epoch != resume.asked or not rules.fresh(self.mark, resume.epoch):
            return self, []
        seat, dropped = self._drop_leases(lambda lease: lease.lease.epoch < resume.epoch)
        ended, effects = source.resume(resume.epoch)
        seat = replace(seat, mark=resume.epoch, holding=replace(holding, epoch=resume.epoch))
        seat = seat._put_source(ended)._rename(resume.asked, resume.epoch)
        return seat, [*dropped, *effects, *seat._restate()]

    def _rename(self, was: Epoch, epoch: Epoch) -> Seat:
        """Earlier handovers of the sequence may still read it: they follow its new epoch."""
        sources = (replace(known, epoch=epoch) if known.epoch == was else known for known in self.sources)
        return replace(self, sources=tuple(sources))

    def _revoke(self, bound: Epoch) -> tuple[Seat, list[InstanceEffect]]:
        seat = replace(self, mark=bound) if self.mark is None or bound > self.mark else self
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
            return replace(self, holding=None), []
        return replace(self, holding=replace(holding, seen=seen).trimmed(self.source)), []

    # ---- steps

    def _stepped(self, step: Stepped, house: House) -> tuple[Seat, list[InstanceEffect]]:
        holding = self.holding
        if holding is None or holding.epoch != self.launched:
            return replace(self, launched=None), []  # launched for a sequence that has gone since
        effects: list[InstanceEffect] = []
        ended = bool(step.records) and step.records[-1].end is not None
        now = Progress(step.full, step.blocks, step.computed, step.ready)
        records, told = holding.records + step.records, holding.told
        if step.records:
            untold = rules.unseen(records, holding.first, told)
            effects.append(ToRouter(holding.router, News(self.session, holding.epoch, told, untold)))
            told = holding.first + len(records)
        first = holding.needed(self.source)
        kept = rules.unseen(records, holding.first, first)
        holding = replace(holding, first=first, records=kept, told=told, ended=ended, progress=now)
        seat = replace(self, launched=None, holding=holding)
        if ended:
            return seat._finish(effects)
        seat, effects = seat._reserve_if_begun(effects)
        return seat._advance(effects, house)

    def _preempted(self) -> tuple[Seat, list[InstanceEffect]]:
        """A handover that has begun ends: what is to be computed again may need more room than it was given."""
        assert self.may_preempt and self.holding is not None
        seat = replace(self, holding=replace(self.holding, progress=None))
        if self.source is None or self.source.state is SourceState.PLANNED:
            return seat, []
        return seat._failed(*self.source.abort("its memory was needed"))

    def _finish(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """The last token is made: the KV may go, the records stay until seen."""
        assert self.holding is not None
        seat = replace(self, doomed=self.doomed | {self.holding.epoch})
        if self.source is not None:
            gone, more = self.source.abandon()
            seat, effects = seat._put_source(gone), effects + more
        if rules.may_forget(self.holding.seen, self.holding.made):
            seat = replace(seat, holding=None)
        return seat, effects

    def _reap(self, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """Free the doomed sequences that no step and no transfer touches any more."""
        reading = {source.epoch for source in self.sources if source.writing is not None}
        free = frozenset(
            epoch
            for epoch in self.doomed
            if rules.may_free_read(epoch in reading) and rules.may_free_stepped(epoch == self.launched)
        )
        return replace(self, doomed=self.doomed - free), [*effects, *map(Drop, sorted(free))]

    def _advance(self, effects: list[InstanceEffect], house: House) -> tuple[Seat, list[InstanceEffect]]:
        source, holding = self.source, self.holding
        if source is None or holding is None:
            return self, effects
        first = min(rules.restated_from(holding.seen, holding.made), source.reserved_at)
        source, more = source.advance(house.config, self.launched is not None, (first, holding.since(first)))
        return self._put_source(source), effects + more

    # ---- peers speak

    def _from_peer(self, message: PeerMessage, house: House) -> tuple[Seat, list[InstanceEffect]]:
        match message:
            case Reserve():
                return self._reserve(message, house)
            case Grant():
                return self._grant(message, house)
            case Wait():
                return self, []
            case Refuse():
                return self._refuse(message, house)
            case Stage():
                return self._stage(message, house)
            case Committed():
                return self._committed(message, house)
            case Stop(lease, source, _):
                return self._stop_source(message) if source == house.me else self._stop_lease(lease, message)
            case Stopped(lease, source, destination):
                return self._stopped(lease, source) if destination == house.me else (self, [])
        raise AssertionError(f"unknown message {message!r}")

    def _reserve(self, reserve: Reserve, house: House) -> tuple[Seat, list[InstanceEffect]]:
        if reserve.destination != house.me or reserve.lease.epoch == self.mark:
            return self, []
        reason = self._why_not(reserve, house)
        if reason:
            refuse = Refuse(reserve.lease, reserve.source, reserve.destination, reason)
            return self, [ToPeer(reserve.source, refuse)]
        seat, effects = self._drop_leases(lambda lease: lease.lease.epoch < reserve.lease.epoch)
        lease, more = Destination.asked(reserve)
        return replace(seat, mark=reserve.lease.epoch, leases=(*seat.leases, lease)), effects + more

    def _why_not(self, reserve: Reserve, house: House) -> str:
        if not rules.fresh(self.mark, reserve.lease.epoch):
            return "the epoch is void here"
        if reserve.fingerprint != house.fingerprint:
            return "another model is served here"
        return "the KV layout differs" if reserve.layout != house.layout else ""

    def _grant(self, grant: Grant, house: House) -> tuple[Seat, list[InstanceEffect]]:
        source = self.source
        if grant.source != house.me:
            return self, []
        if source is None or source.lease != grant.lease or source.state is not SourceState.RESERVING:
            if any(known.lease == grant.lease for known in self.sources):
                return self, []  # told twice
            return self, [ToPeer(grant.destination, Stop(grant.lease, grant.source, grant.destination))]
        source, effects = source.grant(grant)
        return self._put_source(source)._advance(effects, house)

    def _refuse(self, refuse: Refuse, house: House) -> tuple[Seat, list[InstanceEffect]]:
        source = self.source
        if source is None or source.lease != refuse.lease or source.state is not SourceState.RESERVING:
            return self, []
        return self._failed(*source.refused(refuse.reason))

    def _stage(self, stage: Stage, house: House) -> tuple[Seat, list[InstanceEffect]]:
        lease = self._lease(stage.lease)
        if stage.destination != house.me:
            return self, []
        if lease is None:
            if self.holding is not None and self.holding.epoch == stage.lease.epoch:
                return self, []  # adopted already
            return self, [ToPeer(stage.source, Stop(stage.lease, stage.source, stage.destination))]
        if lease.source != stage.source or not rules.takes(lease.expired):
            return self, []
        return self._put_lease(lease.stage(stage), house)

    def _committed(self, committed: Committed, house: House) -> tuple[Seat, list[InstanceEffect]]:
        source = self.source
        if committed.source != house.me or source is None or source.lease != committed.lease:
            return self, []
        if source.state is not SourceState.COMMITTING:
            return self, []
        gone, effects = source.committed()
        doomed = self.doomed | {source.epoch}
        return replace(self, holding=None, doomed=doomed)._put_source(gone), effects

    def _stop_source(self, stop: Stop) -> tuple[Seat, list[InstanceEffect]]:
        """The destination abandons its lease."""
        for source in self.sources:
            if source.lease == stop.lease:
                return self._failed(*source.stop())
        return self, [ToPeer(stop.destination, Stopped(stop.lease, stop.source, stop.destination))]

    def _stop_lease(self, lease: LeaseKey, stop: Stop) -> tuple[Seat, list[InstanceEffect]]:
        """The source abandons the lease that it was given."""
        known = self._lease(lease)
        if known is None or known.source != stop.source:
            return self, [ToPeer(stop.source, Stopped(lease, stop.source, stop.destination))]
        changed, effects = known.stopped_by_source()
        return self._set_lease(changed), effects

    def _stopped(self, lease: LeaseKey, source: Incarnation) -> tuple[Seat, list[InstanceEffect]]:
        known = self._lease(lease)
        if known is None or known.source != source:
            return self, []
        changed, effects = known.fenced()
        return self._set_lease(changed), effects

    # ---- the driver answers

    def _leased(
        self, lease: LeaseKey, granted: bool, have: int, house: House
    ) -> tuple[Seat, list[InstanceEffect]]:
        known = self._lease(lease)
        assert known is not None, "blocks were allotted to a lease that is no more"
        changed, effects = known.leased(granted, have, house.config)
        return self._set_lease(changed), effects

    def _written(self, lease: LeaseKey, ok: bool, house: House) -> tuple[Seat, list[InstanceEffect]]:
        source = next(known for known in self.sources if known.lease == lease)
        was_active = source.active
        source, effects = source.written(ok)
        if was_active and not source.active:
            return self._failed(source, effects)
        return self._put_source(source)._advance(effects, house)

    def _received(
        self, lease: LeaseKey, first: int, count: int, ok: bool, house: House
    ) -> tuple[Seat, list[InstanceEffect]]:
        known = self._lease(lease)
        assert known is not None, "a lease outlives its receives"
        return self._put_lease(known.received(first, count, ok), house)

    def _timeout(self, clock: Clock, lease: LeaseKey) -> tuple[Seat, list[InstanceEffect]]:
        source, known = self.source, self._lease(lease)
        if source is not None and source.lease == lease:
            if clock is Clock.RESERVE and source.state is SourceState.RESERVING:
                return self._failed(*source.abort("no room was granted in time"))
            if clock is Clock.SETTLE and source.state is SourceState.COMMITTING:
                return self._failed(*source.abort("the commit was not acknowledged"))
        if known is not None and clock in (Clock.LEASE, Clock.STOP):
            changed, effects = known.drop() if clock is Clock.LEASE else known.unanswered()
            return self._set_lease(changed), effects
        return self, []

    def _peer_lost(self, peer: Incarnation) -> tuple[Seat, list[InstanceEffect]]:
        seat, effects = self, []
        source = self.source
        if source is not None and source.peer == peer and source.state is not SourceState.PLANNED:
            seat, effects = self._failed(*source.abort("the destination was lost"))
        for lease in seat.leases:
            if lease.source == peer:
                seat, more = seat._lose_writer(lease)
                effects = effects + more
        return seat, effects

    def _lose_writer(self, lease: Destination) -> tuple[Seat, list[InstanceEffect]]:
        dropped, effects = lease.drop()
        fenced, more = dropped.fenced()
        return self._set_lease(fenced), effects + more

    # ---- shared ends

    def _restate(self) -> list[InstanceEffect]:
        """Say again what the router has not seen; without that, that the session lives."""
        holding = self.holding
        if holding is None or (self.source is not None and self.source.state is SourceState.COMMITTING):
            return []
        first = rules.restated_from(holding.seen, holding.made)
        return [ToRouter(holding.router, News(self.session, holding.epoch, first, holding.since(first)))]

    def _failed(self, source: Source, effects: list[InstanceEffect]) -> tuple[Seat, list[InstanceEffect]]:
        """A handover came to nothing; remember what the router was told."""
        unmoved = self.unmoved
        for effect in effects:
            if isinstance(effect, ToRouter) and isinstance(effect.message, Unmoved):
                unmoved = effect.message
        return replace(self, unmoved=unmoved)._put_source(source), effects

    def _clear_below(self, epoch: Epoch) -> tuple[Seat, list[InstanceEffect]]:
        """Starting or adopting a higher epoch drops any lower sequence or lease of the session."""
        seat, effects = self, []
        if self.holding is not None:
            assert self.holding.epoch < epoch
            seat, effects = self._drop_holding()
        seat, more = seat._drop_leases(lambda lease: lease.lease.epoch < epoch)
        return seat, effects + more

    def _drop_holding(self) -> tuple[Seat, list[InstanceEffect]]:
        holding, source = self.holding, self.source
        if holding is None:
            return self, []
        seat = replace(self, holding=None)
        if holding.ended:
            return seat, []  # its KV went when it ended
        seat, pause = replace(seat, doomed=seat.doomed | {holding.epoch}), Pause(holding.epoch)
        if source is None:
            return seat, [pause]
        gone, effects = source.abandon()
        return seat._put_source(gone), [pause, *effects]

    def _drop_leases(self, void) -> tuple[Seat, list[InstanceEffect]]:
        seat, effects = self, []
        for lease in self.leases:
            if void(lease):
                dropped, more = lease.drop()
                seat, effects = seat._set_lease(dropped), effects + more
        return seat, effects

    def _lease(self, key: LeaseKey) -> Destination | None:
        return next((lease for lease in self.leases if lease.lease == key), None)

    def _set_lease(self, changed: Destination) -> Seat:
        kept = tuple(changed if lease.lease == changed.lease else lease for lease in self.leases)
        return replace(self, leases=tuple(lease for lease in kept if lease.state is not LeaseState.OVER))

    def _put_lease(
        self, outcome: tuple[Destination, list[InstanceEffect]], house: House
    ) -> tuple[Seat, list[InstanceEffect]]:
        """Keep the changed lease, and adopt where that made it whole."""
        lease, effects = outcome
        if not lease.complete:
            return self._set_lease(lease), effects
        assert lease.commit is not None and lease.lease.epoch == self.mark
        seat, more = self._set_lease(lease.adopted())._clear_below(lease.lease.epoch)
        commit = lease.commit
        made = commit.first_index + len(commit.records)
        holding = Holding(
            lease.lease.epoch, lease.router, commit.first_index, commit.first_index, made, commit.records
        )
        seat = replace(seat, holding=holding, unmoved=None)
        committed = Committed(lease.lease, lease.source, house.me)
        return seat, [
            *effects,
            *more,
            Adopt(lease.lease, commit),
            ToPeer(lease.source, committed),
            *seat._restate(),
        ]

    def _put_source(self, source: Source) -> Seat:
        kept = tuple(source if known.lease == source.lease else known for known in self.sources)
        return replace(self, sources=tuple(known for known in kept if not known.over))
