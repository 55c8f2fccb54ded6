"""What peers say to one session's seat, and what its copies and its clocks come to."""

from __future__ import annotations

from typing import Self

from . import rules
from .destination import Destination
from .effects import Adopt, Clock, InstanceEffect, ToPeer
from .holding import Holding
from .house import House
from .source import State as SourceState
from .tenancy import Tenancy
from .values import (
    Committed,
    Grant,
    Incarnation,
    LeaseKey,
    PeerMessage,
    Refuse,
    Reserve,
    Stage,
    Stop,
    Stopped,
    Wait,
)

DRAINS = "it is being emptied"


class Peering(Tenancy):
    """The half of a seat between instances: handovers out of it and leases into it."""

    __slots__ = ()

    # ---- peers speak

    def _from_peer(self, message: PeerMessage, house: House) -> tuple[Self, list[InstanceEffect]]:
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

    def _reserve(self, reserve: Reserve, house: House) -> tuple[Self, list[InstanceEffect]]:
        if reserve.destination != house.me or reserve.lease.epoch == self.mark:
            return self, []
        reason = self._why_not(reserve, house)
        if reason:
            refuse = Refuse(reserve.lease, reserve.source, reserve.destination, reason)
            return self, [ToPeer(reserve.source, refuse)]
        seat, effects = self._drop_leases(lambda lease: lease.lease.epoch < reserve.lease.epoch)
        lease, more = Destination.asked(reserve)
        return seat._replace(mark=reserve.lease.epoch, leases=(*seat.leases, lease)), effects + more

    def _why_not(self, reserve: Reserve, house: House) -> str:
        if not rules.fresh(self.mark, reserve.lease.epoch):
            return "the epoch is void here"
        if reserve.fingerprint != house.fingerprint:
            return "another model is served here"
        if reserve.layout != house.layout:
            return "the KV layout differs"
        return DRAINS if house.draining else ""

    def _turn_away(self) -> tuple[Self, list[InstanceEffect]]:
        """Nobody waits for room where none will be given."""
        seat, effects = self, []
        for lease in self.leases:
            refused, more = lease.refused(DRAINS)
            seat, effects = seat._set_lease(refused), effects + more
        return seat, effects

    def _grant(self, grant: Grant, house: House) -> tuple[Self, list[InstanceEffect]]:
        source = self.source
        if grant.source != house.me:
            return self, []
        if source is None or source.lease != grant.lease or source.state is not SourceState.RESERVING:
            if any(known.lease == grant.lease for known in self.sources):
                return self, []  # told twice
            return self, [ToPeer(grant.destination, Stop(grant.lease, grant.source, grant.destination))]
        source, effects = source.grant(grant)
        return self._put_source(source)._advance(effects, house)

    def _refuse(self, refuse: Refuse, house: House) -> tuple[Self, list[InstanceEffect]]:
        source = self.source
        if source is None or source.lease != refuse.lease or source.state is not SourceState.RESERVING:
            return self, []
        return self._failed(*source.refused(refuse.reason))

    def _stage(self, stage: Stage, house: House) -> tuple[Self, list[InstanceEffect]]:
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

    def _committed(self, committed: Committed, house: House) -> tuple[Self, list[InstanceEffect]]:
        source = self.source
        if committed.source != house.me or source is None or source.lease != committed.lease:
            return self, []
        if source.state is not SourceState.COMMITTING:
            return self, []
        gone, effects = source.committed()
        doomed = self.doomed | {source.epoch}
        return self._replace(holding=None, doomed=doomed)._put_source(gone), effects

    def _stop_source(self, stop: Stop) -> tuple[Self, list[InstanceEffect]]:
        """The destination abandons its lease."""
        for source in self.sources:
            if source.lease == stop.lease:
                return self._failed(*source.stop())
        return self, [ToPeer(stop.destination, Stopped(stop.lease, stop.source, stop.destination))]

    def _stop_lease(self, lease: LeaseKey, stop: Stop) -> tuple[Self, list[InstanceEffect]]:
        """The source abandons the lease that it was given."""
        known = self._lease(lease)
        if known is None or known.source != stop.source:
            return self, [ToPeer(stop.source, Stopped(lease, stop.source, stop.destination))]
        changed, effects = known.stopped_by_source()
        return self._set_lease(changed), effects

    def _stopped(self, lease: LeaseKey, source: Incarnation) -> tuple[Self, list[InstanceEffect]]:
        known = self._lease(lease)
        if known is None or known.source != source:
            return self, []
        changed, effects = known.fenced()
        return self._set_lease(changed), effects

    def _put_lease(
        self, outcome: tuple[Destination, list[InstanceEffect]], house: House
    ) -> tuple[Self, list[InstanceEffect]]:
        """Keep the changed lease, and adopt where that made it whole."""
        lease, effects = outcome
        if not lease.complete:
            return self._set_lease(lease), effects
        assert lease.commit is not None and lease.lease.epoch == self.mark
        seat, more = self._set_lease(lease.adopted())._clear_below(lease.lease.epoch)
        commit = lease.commit
        made = commit.first_index + len(commit.records)
        first, epoch = commit.first_index, lease.lease.epoch
        holding = Holding(epoch, lease.router, first, first, made, commit.records, begun=True)
        seat = seat._replace(holding=holding, unmoved=None)
        committed = Committed(lease.lease, lease.source, house.me)
        return seat, [
            *effects,
            *more,
            Adopt(lease.lease, commit),
            ToPeer(lease.source, committed),
            *seat._restate(),
        ]

    # ---- the driver answers

    def _leased(
        self, lease: LeaseKey, granted: bool, have: int, house: House
    ) -> tuple[Self, list[InstanceEffect]]:
        known = self._lease(lease)
        assert known is not None, "blocks were allotted to a lease that is no more"
        changed, effects = known.leased(granted, have, house.config)
        return self._set_lease(changed), effects

    def _written(self, lease: LeaseKey, ok: bool, house: House) -> tuple[Self, list[InstanceEffect]]:
        source = next(known for known in self.sources if known.lease == lease)
        was_active = source.active
        source, effects = source.written(ok)
        if was_active and not source.active:
            return self._failed(source, effects)
        return self._put_source(source)._advance(effects, house)

    def _received(
        self, lease: LeaseKey, first: int, count: int, ok: bool, house: House
    ) -> tuple[Self, list[InstanceEffect]]:
        known = self._lease(lease)
        assert known is not None, "a lease outlives its receives"
        return self._put_lease(known.received(first, count, ok), house)

    def _timeout(self, clock: Clock, lease: LeaseKey) -> tuple[Self, list[InstanceEffect]]:
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

    def _peer_lost(self, peer: Incarnation) -> tuple[Self, list[InstanceEffect]]:
        seat, effects = self, []
        source = self.source
        if source is not None and source.peer == peer and source.state is not SourceState.PLANNED:
            seat, effects = self._failed(*source.abort("the destination was lost"))
        for lease in seat.leases:
            if lease.source == peer:
                seat, more = seat._lose_writer(lease)
                effects = effects + more
        return seat, effects

    def _lose_writer(self, lease: Destination) -> tuple[Self, list[InstanceEffect]]:
        dropped, effects = lease.drop()
        fenced, more = dropped.fenced()
        return self._set_lease(fenced), effects + more
