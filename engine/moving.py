"""What a handover asks of an instance: room for what arrives, reservations and copies of what leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..handover.effects import (
    Adopt,
    CloseReceive,
    InstanceEffect,
    Lease,
    Leased,
    Quarantine,
    Receive,
    Release,
    Reserving,
    ToPeer,
    Write,
)
from ..handover.house import House
from ..handover.values import Grant, LeaseKey, PeerMessage, Reserve, Stage, Window
from .chronicle import Chronicle
from .outbox import Outbox
from .outside import Limits, Outside
from .phase import Size
from .scheduler import Scheduler
from .sequence import Sequence

if TYPE_CHECKING:
    from .grammar import Constraint  # its library is needed where a grammar is

MOVING_ROOM = 128
MOVING_SHARE = 0.25
"""A sequence may grow by so many tokens, and this share of those that it has, while it is copied; then it waits."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """A reservation, and the names of the blocks that its context fills."""

    reserve: Reserve
    names: list[bytes]
    constraint: Constraint | None
    """The state of its grammar after the output so far: what is compiled now need not be so when it is adopted."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A reservation of ours."""

    sequence: Sequence
    room: int
    """Tokens of KV that it asked room for."""


class Moving:
    """Carries out the effects of handovers, for the engine and in its thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        house: House,
        limits: Limits,
        outside: Outside,
        window: Window | None,
        outbox: Outbox,
        chronicle: Chronicle,
    ):
        self.committing: set[LeaseKey] = set()
        """Final stages that are being written in place."""
        self.written_blocks = self.sent_blocks = 0
        self._scheduler = scheduler
        self._house = house
        self._limits = limits
        self._outside = outside
        self._window = window
        self._outbox = outbox
        self._chronicle = chronicle
        self._coming: dict[LeaseKey, _Coming] = {}
        self._waiting: list[LeaseKey] = []
        self._grants: dict[LeaseKey, Grant] = {}
        self._asked: dict[LeaseKey, _Asked] = {}

    @property
    def idle(self) -> bool:
        """No reservation of another is here."""
        return not self._coming and not self._waiting

    def carry_out(self, session: str, effect: InstanceEffect) -> Leased | None:
        """The answer, where there is one at once."""
        match effect:
            case Reserving():
                self._reserve(session, effect)
            case ToPeer(peer, message):
                self._outbox.to_peer(peer, self._complete(message))
            case Lease(reserve):
                self._coming[reserve.lease] = self._prepare(reserve)
                return self._lease(reserve.lease, first=True)
            case Write(epoch, stage, one_sided):
                self._write(self._scheduler[LeaseKey(session, epoch)], stage, one_sided)
            case Receive(stage):
                table = self._scheduler.pool.table(stage.lease)
                self._outside.receive_blocks(stage, table[stage.first : stage.first + stage.count])
            case CloseReceive(lease):
                self._outside.close_receive(lease)
            case Adopt():
                self._adopt(effect)
            case Release(lease):
                self._coming.pop(lease, None)
                self._waiting = [waiting for waiting in self._waiting if waiting != lease]
                self._scheduler.release(lease)
            case Quarantine(lease):
                self._scheduler.quarantine(lease)
            case _:
                raise AssertionError(f"unknown effect {effect!r}")
        return None

    def forget(self, leaves: Callable[[str], bool]) -> None:
        """What was granted to sessions of which nothing `leaves` any more."""
        self._grants = {lease: grant for lease, grant in self._grants.items() if leaves(lease.session)}
        self._asked = {lease: asked for lease, asked in self._asked.items() if leaves(lease.session)}

    # ---- what leaves

    def room(self, lease: LeaseKey) -> int | None:
        """Tokens of KV that the destination was asked to find room for."""
        asked = self._asked.get(lease)
        return None if asked is None else asked.room

    def granted(self, grant: Grant) -> None:
        """A destination has room, and says where."""
        self._grants[grant.lease] = grant
        asked = self._asked.get(grant.lease)
        if asked is not None:
            self._chronicle.granted(asked.sequence, grant.destination.instance, grant.have)

    def _reserve(self, session: str, effect: Reserving) -> None:
        sequence = self._scheduler[LeaseKey(session, effect.epoch)]
        blocks = self._blocks_asked(sequence)
        self._asked[effect.lease] = _Asked(sequence, blocks * self._limits.block_size)
        reserve = Reserve(
            lease=effect.lease,
            source=self._house.me,
            destination=effect.destination.incarnation,
            fingerprint=self._house.fingerprint,
            layout=self._house.layout,
            blocks=blocks,
            context=sequence.context,
            router=effect.router,
            one_sided=effect.one_sided,
        )
        self._chronicle.reserving(sequence, reserve.destination.instance, blocks)
        self._outbox.to_peer(reserve.destination, reserve)

    def _blocks_asked(self, sequence: Sequence) -> int:
        """What it has, with what it may grow by meanwhile; no more at once than a cache like this one holds."""
        tokens, passed = len(sequence.tokens), self._scheduler.kv.passed(len(sequence.tokens))
        growth = MOVING_ROOM + int(MOVING_SHARE * (tokens - passed * self._limits.block_size))
        if not self._scheduler.role.decode_slots:
            growth = 0
        blocks = self._limits.blocks(min(sequence.most, tokens + growth))
        return min(blocks, passed + self._scheduler.pool.total)

    def _write(self, sequence: Sequence, stage: Stage, one_sided: bool) -> None:
        ids = self._scheduler.pool.table(sequence.key)[stage.first : stage.first + stage.count]
        if not one_sided:
            self.sent_blocks += stage.count
            self._outside.send_blocks(stage, ids, sequence.paused)
            return
        self.written_blocks += stage.count
        grant = self._grants[stage.lease]
        first = stage.first - grant.have
        targets = grant.block_ids[first : first + stage.count]
        if stage.commit is not None:
            self.committing.add(stage.lease)
        self._outside.write_in_place(stage, grant.window, ids, targets, sequence.paused)

    # ---- what arrives

    def retried(self) -> Iterator[Leased]:
        """The reservations that have found room since they began to wait, in order of arrival."""
        for key in list(self._waiting):
            leased = self._lease(key, first=False)
            if leased is not None:
                yield leased
            if not self._scheduler.pool.holds(key):
                return
            self._waiting.remove(key)

    def _prepare(self, reserve: Reserve) -> _Coming:
        """All that grows with the context is done before the sequence is adopted."""
        told = reserve.context
        return _Coming(reserve, self._scheduler.kv.names_of(told), self._limits.constraint(told))

    def _lease(self, key: LeaseKey, first: bool) -> Leased | None:
        """Try to find room; a reservation hears at once that it waits, and later that it has it."""
        coming = self._coming[key]
        in_turn = not first or not self._waiting
        have = self._try_lease(coming) if in_turn else None
        if have is None and first:
            self._waiting.append(key)
        return Leased(key, have is not None, have or 0) if have is not None or first else None

    def _try_lease(self, coming: _Coming) -> int | None:
        reserve = coming.reserve
        held = len(reserve.context.prompt) + len(reserve.context.emitted)
        most = len(reserve.context.prompt) + reserve.context.params.max_tokens
        size = Size(held, min(most, self._limits.context))
        return self._scheduler.lease(reserve.lease, reserve.blocks, size, reserve.context, coming.names)

    def _complete(self, message: PeerMessage) -> PeerMessage:
        """Tell a one-sided writer where to write."""
        if not isinstance(message, Grant) or not self._coming[message.lease].reserve.one_sided:
            return message
        table = tuple(self._scheduler.pool.table(message.lease)[message.have :])
        return replace(message, block_ids=table, window=self._window)

    def _adopt(self, effect: Adopt) -> None:
        coming, limits = self._coming.pop(effect.lease), self._limits
        model = (limits.context, limits.ends, coming.constraint)
        sequence = Sequence.adopt(
            effect.lease, coming.reserve.context, effect.commit, *model, names=coming.names
        )
        self._scheduler.adopt(sequence)
        self._chronicle.adopted(sequence, len(self._scheduler.pool.table(sequence.key)))
