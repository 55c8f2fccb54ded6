"""The destination of one handover: a lease, the blocks that arrive under it, and what becomes of it.

A value: each method returns the next destination and what to do. The seat that holds it knows the mark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from . import rules
from .config import HandoverConfig
from .effects import (
    Clock,
    CloseReceive,
    Condemn,
    InstanceEffect,
    Lease,
    Quarantine,
    Receive,
    Release,
    Timer,
    ToPeer,
)
from .values import Commit, Grant, Incarnation, LeaseKey, Refuse, Reserve, Stage, Stop, Stopped, Wait


class State(Enum):
    WAITING = "waiting"
    """No room yet."""
    LEASED = "leased"
    FENCING = "fencing"
    """The lease is over; its blocks wait for the end of whatever may still write them."""
    OVER = "over"
    """Adopted or released."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One lease. `arrived` are the (first, count) of stages that are here whole."""

    lease: LeaseKey
    source: Incarnation
    me: Incarnation
    router: str
    one_sided: bool
    state: State = State.WAITING
    have: int = 0
    arrived: frozenset[tuple[int, int]] = frozenset()
    receiving: frozenset[tuple[int, int]] = frozenset()
    """Two-sided stages whose receive has not ended."""
    commit: Commit | None = None
    end: int = 0
    """The block at which the final stage ends."""
    stops: int = 0
    """How often the writer was asked to stop, up to 2."""
    owes_stopped: bool = False

    @staticmethod
    def asked(reserve: Reserve) -> tuple[Destination, list[InstanceEffect]]:
        """A reservation that may be met; the driver answers `Lease` now or when there is room."""
        new = Destination(
            reserve.lease, reserve.source, reserve.destination, reserve.router, reserve.one_sided
        )
        return new, [Timer(Clock.LEASE, reserve.lease), Lease(reserve)]

    @property
    def expired(self) -> bool:
        return self.state is not State.LEASED

    def leased(
        self, granted: bool, have: int, cfg: HandoverConfig
    ) -> tuple[Destination, list[InstanceEffect]]:
        assert self.state is State.WAITING
        if not granted:
            return self, [ToPeer(self.source, Wait(self.lease, self.source, self.me))]
        grant = Grant(self.lease, self.source, self.me, cfg.lease_s, have)
        return replace(self, state=State.LEASED, have=have), [
            Timer(Clock.LEASE, self.lease),
            ToPeer(self.source, grant),
        ]

    def stage(self, stage: Stage) -> tuple[Destination, list[InstanceEffect]]:
        """The header of a stage. One-sided: its blocks are here. Two-sided: take them in."""
        place = (stage.first, stage.count)
        if place in self.arrived or place in self.receiving:
            return self, []  # told twice
        known = self
        if stage.commit is not None:
            known = replace(self, commit=stage.commit, end=stage.first + stage.count)
        renewed: list[InstanceEffect] = [Timer(Clock.LEASE, self.lease)]
        if self.one_sided or stage.count == 0:
            return replace(known, arrived=self.arrived | {place}), renewed
        return replace(known, receiving=self.receiving | {place}), [*renewed, Receive(stage)]

    def received(self, first: int, count: int, ok: bool) -> tuple[Destination, list[InstanceEffect]]:
        place = (first, count)
        assert place in self.receiving
        ended = replace(self, receiving=self.receiving - {place})
        if self.state is not State.LEASED:
            return ended._release_if_fenced([])
        if not ok:
            return ended.drop()
        return replace(ended, arrived=self.arrived | {place}), [Timer(Clock.LEASE, self.lease)]

    @property
    def complete(self) -> bool:
        return rules.complete(self.commit, self.end, self.have, self.arrived)

    def adopted(self) -> Destination:
        return replace(self, state=State.OVER)

    # ---- the ways out

    def drop(self) -> tuple[Destination, list[InstanceEffect]]:
        """The lease is void: expired, revoked, superseded or broken. Its blocks go when nothing can write them."""
        if self.state is State.WAITING:
            return replace(self, state=State.OVER), [Release(self.lease)]
        if self.state is not State.LEASED:
            return self, []
        fencing, effects = replace(self, state=State.FENCING), []
        if not rules.may_release(self.one_sided, writer_fenced=False):
            return fencing._ask_to_stop([Quarantine(self.lease)])
        if self.receiving:
            effects.append(CloseReceive(self.lease))
        effects.append(ToPeer(self.source, Stop(self.lease, self.source, self.me)))
        return fencing._release_if_fenced(effects)

    def refused(self, reason: str) -> tuple[Destination, list[InstanceEffect]]:
        """There will be no room; what was leased already is kept."""
        if self.state is not State.WAITING:
            return self, []
        refuse = Refuse(self.lease, self.source, self.me, reason)
        return replace(self, state=State.OVER), [Release(self.lease), ToPeer(self.source, refuse)]

    def _ask_to_stop(self, effects: list[InstanceEffect]) -> tuple[Destination, list[InstanceEffect]]:
        stop = ToPeer(self.source, Stop(self.lease, self.source, self.me))
        asked = replace(self, stops=min(self.stops + 1, 2))
        return asked, [*effects, stop, Timer(Clock.STOP, self.lease)]

    def unanswered(self) -> tuple[Destination, list[InstanceEffect]]:
        """A writer does not answer `stop`: ask again, then ask for its end."""
        if self.state is not State.FENCING or not self.one_sided:
            return self, []
        return self._ask_to_stop([Condemn(self.source)] if self.stops >= 2 else [])

    def fenced(self) -> tuple[Destination, list[InstanceEffect]]:
        """The source has answered `stop`, or is dead: nothing of it can write any more."""
        if self.state is State.FENCING:
            return self._release_if_fenced([], writer_fenced=True)
        return self, []

    def stopped_by_source(self) -> tuple[Destination, list[InstanceEffect]]:
        """The source abandons the lease, its writes have ended. Nothing but a receive of our own can still write."""
        if self.state is State.WAITING:
            return replace(self, state=State.OVER), [Release(self.lease), self._stopped()]
        told = replace(self, owes_stopped=True)
        effects: list[InstanceEffect] = []
        if self.state is State.LEASED:
            told = replace(told, state=State.FENCING)
            if self.receiving:
                effects.append(CloseReceive(self.lease))
        return told._release_if_fenced(effects, writer_fenced=True)

    def _release_if_fenced(
        self, effects: list[InstanceEffect], writer_fenced: bool = False
    ) -> tuple[Destination, list[InstanceEffect]]:
        if self.receiving or not rules.may_release(self.one_sided, writer_fenced):
            return self, effects
        effects = [*effects, Release(self.lease)]
        if self.owes_stopped:
            effects.append(self._stopped())
        return replace(self, state=State.OVER, owes_stopped=False), effects

    def _stopped(self) -> ToPeer:
        return ToPeer(self.source, Stopped(self.lease, self.source, self.me))
