"""The source of one handover: reserve, stage full blocks while work goes on, pause, copy the rest with the commit.

A value: `on(event)` returns the next source and what to do. The seat that holds it owns the sequence and its records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from . import rules
from .config import HandoverConfig
from .effects import (
    Clock,
    InstanceEffect,
    Pause,
    Reserving,
    Timer,
    ToPeer,
    ToRouter,
    Unpause,
    Write,
)
from .values import (
    Address,
    Ask,
    Commit,
    Epoch,
    Grant,
    Incarnation,
    LeaseKey,
    MoveMode,
    Stage,
    Stop,
    Stopped,
    TokenRecord,
    Unmoved,
)


class State(Enum):
    PLANNED = "planned"
    """Known from the start, begins with the first completed chunk."""
    RESERVING = "reserving"
    COPYING = "copying"
    PAUSED = "paused"
    """Launched in no further step; the last blocks wait for earlier ones, or for the last step."""
    COMMITTING = "committing"
    """The commit may have left."""
    ABORTED = "aborted"
    """Over, but for a write that has not ended."""


@dataclass(frozen=True, slots=True)
class Source:
    """One attempt to hand `epoch` over as `lease.epoch`. `sent <= full <= blocks`, in blocks of the table.

    But for those that the destination has already, or that a sliding window will have passed: they count as sent, even
    where they are not computed here yet.
    """

    me: Incarnation
    router: str
    epoch: Epoch
    lease: LeaseKey
    destination: Address
    mode: MoveMode
    one_sided: bool
    state: State = State.PLANNED
    sent: int = 0
    full: int = 0
    blocks: int = 0
    computed: int = 0
    ready: bool = False
    writing: Stage | None = None
    """Header of the write in flight."""
    reserved_at: int = 0
    """The token index up to which the reservation told the destination what was generated."""
    owes_stopped: bool = False
    """The destination asked to stop, and is answered when the write has ended."""
    tells_stop: bool = False
    """The destination may hold a lease that it must hear the end of."""

    @property
    def peer(self) -> Incarnation:
        return self.destination.incarnation

    @property
    def active(self) -> bool:
        return self.state is not State.ABORTED

    @property
    def paused(self) -> bool:
        return self.state in (State.PAUSED, State.COMMITTING)

    @property
    def granted(self) -> bool:
        """The destination has given it blocks, and no more than were asked for."""
        return self.state in (State.COPYING, State.PAUSED, State.COMMITTING)

    @property
    def over(self) -> bool:
        return self.state is State.ABORTED and self.writing is None

    # ---- the way forward

    def reserve(self, made: int, passed: int) -> tuple[Source, list[InstanceEffect]]:
        """Ask the destination for blocks; `made` tokens were generated so far, whose last sees none of `passed` blocks.

        The destination finds the same number, and grants no less.
        """
        assert self.state is State.PLANNED
        source = replace(self, state=State.RESERVING, reserved_at=made, sent=passed, tells_stop=True)
        asked = Reserving(self.lease, self.epoch, self.destination, self.router, self.one_sided)
        return source, [asked, Timer(Clock.RESERVE, self.lease)]

    def grant(self, grant: Grant) -> tuple[Source, list[InstanceEffect]]:
        assert self.state is State.RESERVING
        source = replace(self, state=State.COPYING, sent=rules.copied_from(grant.have))
        if self.mode is MoveMode.BLOCKING and self.ready:
            return replace(source, state=State.PAUSED), [Pause(self.epoch)]
        return source, []

    def progress(self, full: int, blocks: int, computed: int, ready: bool) -> Source:
        return replace(self, full=full, blocks=blocks, computed=computed, ready=ready)

    def advance(
        self, cfg: HandoverConfig, launched: bool, commit: tuple[int, tuple[TokenRecord, ...]]
    ) -> tuple[Source, list[InstanceEffect]]:
        """Start the next write, if one is due.

        `commit` is the (first index, records) that the final stage would carry.
        """
        if self.writing is not None or self.state not in (State.COPYING, State.PAUSED):
            return self, []
        source, effects = self, []
        if source.state is State.COPYING and self.ready and self.blocks - self.sent <= cfg.final_blocks:
            source = replace(source, state=State.PAUSED)
            effects.append(Pause(self.epoch))
        if source.state is State.PAUSED and self.blocks - self.sent <= cfg.final_blocks:
            if not rules.may_copy_last(launched):
                return source, effects
            last = Commit(commit[0], commit[1], self.computed)
            return source._write(self.blocks - self.sent, last, effects)
        due = min(self.full - self.sent, cfg.stage_blocks)
        return source._write(due, None, effects) if due > 0 else (source, effects)

    def _write(
        self, count: int, commit: Commit | None, effects: list[InstanceEffect]
    ) -> tuple[Source, list[InstanceEffect]]:
        stage = Stage(self.lease, self.me, self.peer, self.sent, count, commit=commit)
        state = State.COMMITTING if commit is not None else self.state
        source = replace(self, state=state, writing=stage, sent=self.sent + count)
        return source, [*effects, Write(self.epoch, stage, self.one_sided)]

    def written(self, ok: bool) -> tuple[Source, list[InstanceEffect]]:
        """The write in flight has ended.

        A one-sided writer sends the header now, which thereby says that the blocks landed.
        """
        assert self.writing is not None
        source, effects = replace(self, writing=None), []
        if ok and self.one_sided and self.active:
            effects.append(ToPeer(self.peer, self.writing))
        if self.state is State.COMMITTING:
            return source._commit_written(ok, effects)
        if self.state is State.ABORTED:
            return source._leave(effects)
        if not ok:
            aborted, more = source.abort("the copy failed")
            return aborted, effects + more
        return source, effects

    def _commit_written(self, ok: bool, effects: list[InstanceEffect]) -> tuple[Source, list[InstanceEffect]]:
        if ok:
            return self._answer_stop([*effects, Timer(Clock.SETTLE, self.lease)])
        if self.one_sided:  # the header goes after the blocks: it has not left
            return replace(self, state=State.PAUSED).abort("the copy failed")
        return self._answer_stop([*effects, *self._ask()])

    # ---- the ways out

    def abort(self, reason: str) -> tuple[Source, list[InstanceEffect]]:
        """Give up: the sequence runs on here, and the router hears the reason; after a commit it is asked instead."""
        if not rules.may_run_again(self.state is State.COMMITTING):
            return self, self._ask()
        effects: list[InstanceEffect] = []
        if self.paused:
            effects.append(Unpause(self.epoch, self.epoch))
        session = self.lease.session
        effects.append(ToRouter(self.router, Unmoved(session, self.epoch, self.lease.epoch, reason)))
        return self._end(effects)

    def resume(self, epoch: Epoch) -> tuple[Source, list[InstanceEffect]]:
        """The router voided the commit: the sequence runs on under `epoch`."""
        return self._end([Unpause(self.epoch, epoch)])

    def abandon(self) -> tuple[Source, list[InstanceEffect]]:
        """The sequence is gone (committed, revoked, ended); the seat frees it when no write reads its blocks."""
        return self._end([])

    def committed(self) -> tuple[Source, list[InstanceEffect]]:
        """The destination has adopted: the sequence here is done with, and the lease is no more."""
        return replace(self, tells_stop=False).abandon()

    def refused(self, reason: str) -> tuple[Source, list[InstanceEffect]]:
        return replace(self, tells_stop=False).abort(reason)

    def _end(self, effects: list[InstanceEffect]) -> tuple[Source, list[InstanceEffect]]:
        source = replace(self, state=State.ABORTED)
        return (
            source._leave(effects) if rules.may_answer_stop(self.writing is not None) else (source, effects)
        )

    def _leave(self, effects: list[InstanceEffect]) -> tuple[Source, list[InstanceEffect]]:
        """Tell the destination that nothing follows, which is true from now on."""
        if self.owes_stopped:
            return self._answer_stop(effects)
        if not self.tells_stop:
            return self, effects
        stop = ToPeer(self.peer, Stop(self.lease, self.me, self.peer))
        return replace(self, tells_stop=False), [*effects, stop]

    def stop(self) -> tuple[Source, list[InstanceEffect]]:
        """The destination wants no more. After a commit this changes nothing but that it is answered."""
        source = replace(self, owes_stopped=True)
        if self.state in (State.COMMITTING, State.ABORTED):
            return (
                source._answer_stop([]) if rules.may_answer_stop(self.writing is not None) else (source, [])
            )
        return source.abort("the destination stopped it")

    def _answer_stop(self, effects: list[InstanceEffect]) -> tuple[Source, list[InstanceEffect]]:
        if not self.owes_stopped:
            return self, effects
        answer = ToPeer(self.peer, Stopped(self.lease, self.me, self.peer))
        return replace(self, owes_stopped=False), [*effects, answer]

    def _ask(self) -> list[InstanceEffect]:
        """Who owns the session? Asked again until answered, but not while a copy reads: it may run on then."""
        if self.writing is not None:
            return []
        session = self.lease.session
        return [ToRouter(self.router, Ask(session, self.epoch)), Timer(Clock.SETTLE, self.lease)]
