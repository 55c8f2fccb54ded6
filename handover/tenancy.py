"""What one session has at one instance, and how it lets go of it. What happens to it is `Peering`'s and `Seat`'s."""

from __future__ import annotations

from typing import NamedTuple, Self

from . import rules
from .destination import Destination
from .destination import State as LeaseState
from .effects import InstanceEffect, Pause, ToRouter
from .holding import Holding
from .house import House
from .source import Source
from .source import State as SourceState
from .values import Epoch, LeaseKey, News, Unmoved


class Tenancy(NamedTuple):
    """A value; every change is a new one."""

    session: str
    mark: Epoch | None = None
    holding: Holding | None = None
    sources: tuple[Source, ...] = ()
    """Handovers out; at most one is active, the others wait for a write to end."""
    leases: tuple[Destination, ...] = ()
    launched: tuple[Epoch, ...] = ()
    """The sequences that steps in flight may write, one for each of them, the oldest step first."""
    doomed: frozenset[Epoch] = frozenset()
    """Sequences that go as soon as no step and no transfer touches their blocks."""
    unmoved: Unmoved | None = None
    """The last move that failed, to be told again where the router asks again."""

    @property
    def empty(self) -> bool:
        """Nothing is held but the mark."""
        return self.holding is None and not self.sources and not self.leases and not self.doomed

    @property
    def plain(self) -> bool:
        """It holds a sequence that goes on, and nothing else."""
        holding = self.holding
        return holding is not None and not (holding.ended or self.sources or self.leases or self.doomed)

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
        return rules.may_free_read(reading) and rules.may_free_stepped(holding.epoch in self.launched)

    @property
    def kept_from(self) -> int | None:
        """Where a sliding window passes over the sequence's blocks: the first that may not be freed for a handover."""
        own = [
            known for known in self.sources if self.holding is not None and known.epoch == self.holding.epoch
        ]
        firsts = [known.writing.first for known in own if known.writing is not None]
        firsts += [known.sent for known in own if known.active and known.state is not SourceState.PLANNED]
        return rules.kept_from(firsts)

    def _restate(self) -> list[InstanceEffect]:
        """Say again what the router has not seen; without that, that the session lives."""
        holding = self.holding
        if holding is None or (self.source is not None and self.source.state is SourceState.COMMITTING):
            return []
        first = rules.restated_from(holding.seen, holding.made)
        news = News(self.session, holding.epoch, first, holding.since(first), waits=not holding.begun)
        return [ToRouter(holding.router, news)]

    def _failed(self, source: Source, effects: list[InstanceEffect]) -> tuple[Self, list[InstanceEffect]]:
        """A handover came to nothing; remember what the router was told."""
        unmoved = self.unmoved
        for effect in effects:
            if isinstance(effect, ToRouter) and isinstance(effect.message, Unmoved):
                unmoved = effect.message
        return self._replace(unmoved=unmoved)._put_source(source), effects

    def _clear_below(self, epoch: Epoch) -> tuple[Self, list[InstanceEffect]]:
        """Starting or adopting a higher epoch drops any lower sequence or lease of the session."""
        seat, effects = self, []
        if self.holding is not None:
            assert self.holding.epoch < epoch
            seat, effects = self._drop_holding()
        seat, more = seat._drop_leases(lambda lease: lease.lease.epoch < epoch)
        return seat, effects + more

    def _drop_holding(self) -> tuple[Self, list[InstanceEffect]]:
        holding, source = self.holding, self.source
        if holding is None:
            return self, []
        seat = self._replace(holding=None)
        if holding.ended:
            return seat, []  # its KV went when it ended
        seat, pause = seat._replace(doomed=seat.doomed | {holding.epoch}), Pause(holding.epoch)
        if source is None:
            return seat, [pause]
        gone, effects = source.abandon()
        return seat._put_source(gone), [pause, *effects]

    def _drop_leases(self, void) -> tuple[Self, list[InstanceEffect]]:
        seat, effects = self, []
        for lease in self.leases:
            if void(lease):
                dropped, more = lease.drop()
                seat, effects = seat._set_lease(dropped), effects + more
        return seat, effects

    def _lease(self, key: LeaseKey) -> Destination | None:
        return next((lease for lease in self.leases if lease.lease == key), None)

    def _set_lease(self, changed: Destination) -> Self:
        kept = tuple(changed if lease.lease == changed.lease else lease for lease in self.leases)
        return self._replace(leases=tuple(lease for lease in kept if lease.state is not LeaseState.OVER))

    def _put_source(self, source: Source) -> Self:
        kept = tuple(source if known.lease == source.lease else known for known in self.sources)
        return self._replace(sources=tuple(known for known in kept if not known.over))

    def _advance(self, effects: list[InstanceEffect], house: House) -> tuple[Self, list[InstanceEffect]]:
        source, holding = self.source, self.holding
        if source is None or holding is None:
            return self, effects
        first = min(rules.restated_from(holding.seen, holding.made), source.reserved_at)
        stepping = holding.epoch in self.launched
        source, more = source.advance(house.config, stepping, (first, holding.since(first)))
        return self._put_source(source), effects + more
