"""Messages that change nothing at an instance, now and whenever else they may come."""

from __future__ import annotations

from penstock.handover import rules
from penstock.handover.destination import State as LeaseState
from penstock.handover.seat import Seat
from penstock.handover.source import State as SourceState
from penstock.handover.values import (
    Committed,
    Epoch,
    LeaseKey,
    Move,
    Refuse,
    Resume,
    Revoke,
    Seen,
    Start,
    Stopped,
    Wait,
)

from .instance import Instance


def never_matters(sender: object, told: object, inst: Instance) -> bool:
    """`told` is a peer's message, or (incarnation, message) of the router `sender`.

    By rule 5 no epoch at or below the mark comes back, and a handover that has left a state does not return to it.
    """
    seat, mark = inst.seat, inst.seat.mark
    match told[1] if type(told) is tuple else told:
        case Wait():
            return True
        case Start(_, epoch) | Resume(_, _, epoch):
            return mark is not None and mark >= epoch
        case Revoke(_, bound):
            return mark is not None and mark >= bound and not _owns_or_leases(seat, bound)
        case Move(_, epoch):
            return mark is not None and mark >= epoch and not _may_own(seat, epoch)
        case Seen(_, attempt, _):
            own = seat.holding
            if own is None or own.epoch.attempt <= attempt:
                return False
            return not rules.believes_seen(own.router, own.epoch.attempt, str(sender), attempt)
        case Refuse(lease):
            return _state(seat, lease) not in (SourceState.PLANNED, SourceState.RESERVING)
        case Committed(lease):
            return _state(seat, lease) in (None, SourceState.ABORTED)
        case Stopped(lease, _, destination) if destination == inst.incarnation:
            return mark is not None and mark >= lease.epoch and all(k.lease != lease for k in seat.leases)
    return False


def _owns_or_leases(seat: Seat, bound: Epoch) -> bool:
    live = any(known.lease.epoch <= bound and known.state is not LeaseState.FENCING for known in seat.leases)
    return live or (seat.holding is not None and seat.holding.epoch <= bound)


def _may_own(seat: Seat, epoch: Epoch) -> bool:
    """It does, or adopts under it yet."""
    leased = any(known.lease.epoch == epoch for known in seat.leases)
    return leased or (seat.holding is not None and seat.holding.epoch == epoch)


def _state(seat: Seat, lease: LeaseKey) -> SourceState | None:
    return next((source.state for source in seat.sources if source.lease == lease), None)
