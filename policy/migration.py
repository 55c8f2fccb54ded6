"""Which running sequences go elsewhere: the least free instance is relieved by the freest, and what ends is emptied.

Llumnix's rescheduling (Sun et al., OSDI 2024): as all demands are memory in the one measure of `freeness`, making room
for one that waits, headroom for one of high priority and balance are the same rule, told apart by its cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .cost import CostModel, StepShape
from .freeness import freeness, steps_left, usage_blocks
from .migration_config import MigrationConfig
from .projection import first_waiting, joined, left
from .state import InstanceView, Key, LoadView, Move, MoveReason, SequenceView


@dataclass(frozen=True, slots=True)
class Planned:
    """A move that was planned at a time. `open` until the views show it done, it failed, or `move_s` has passed."""

    move: Move
    at: float
    open: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """Moves of late, by session, and the instances that are being relieved."""

    planned: Mapping[str, Planned] = field(default_factory=dict)
    relieved: frozenset[Key] = frozenset()


def plan_moves(
    views: Sequence[InstanceView],
    cfg: MigrationConfig,
    now: float,
    cost: CostModel | None,
    memory: Memory,
) -> tuple[list[Move], Memory]:
    """Live migrations to start now.

    Views tell their `sequences`. A move counts as under way until they show it, or `failed` is told of it.
    """
    plan = _Plan(views, cfg, now, cost, _followed(memory, views, cfg, now))
    plan.empty()
    plan.start()
    relieved = plan.relieve(memory.relieved)
    return plan.moves, Memory(plan.planned, relieved)


def failed(memory: Memory, session: str) -> Memory:
    """The move of a session came to nothing: it counts no more, and the session rests before it is tried again."""
    if session not in memory.planned:
        return memory
    return replace(memory, planned={**memory.planned, session: replace(memory.planned[session], open=False)})


def _followed(
    memory: Memory, views: Sequence[InstanceView], cfg: MigrationConfig, now: float
) -> dict[str, Planned]:
    """What is under way still, and what ended so lately that the sequence rests."""
    at = {one.session: view.key for view in views for one in view.sequences}
    followed = {}
    for session, planned in memory.planned.items():
        if planned.open and at.get(session) == planned.move.destination:
            planned = replace(planned, at=now, open=False)
        elif planned.open and (at.get(session) != planned.move.source or now - planned.at > cfg.move_s):
            planned = replace(planned, open=False)
        if planned.open or now - planned.at <= cfg.rest_s:
            followed[session] = planned
    return followed


class _Plan:
    """Views as they will be when all that is under way is done, and the moves that are added to that."""

    def __init__(
        self,
        views: Sequence[InstanceView],
        cfg: MigrationConfig,
        now: float,
        cost: CostModel | None,
        planned: dict[str, Planned],
    ):
        self.moves: list[Move] = []
        self.planned = planned
        self._cfg = cfg
        self._now = now
        self._cost = cost
        self._views = {view.key: view for view in sorted(views, key=lambda view: view.key)}
        self._links: Counter[tuple[Key, Key]] = Counter()
        self._ends: Counter[Key] = Counter()
        self._kept: Counter[Key] = Counter()
        """Free blocks that are for the first that waits there."""
        for session, each in planned.items():
            if each.open:
                self._count(each.move)
                self._shift(session, each.move)

    # ---- what must go

    def empty(self) -> None:
        """Those that drain, or decode no more, lose what they run, the longest to remain first."""
        for source in [view for view in self._views.values() if view.alive]:
            if source.draining or not source.load.decode_slots:
                reason = MoveReason.DRAIN if source.draining else MoveReason.ROLE_CHANGE
                for one in sorted(source.sequences, key=lambda one: (-one.remaining, one.session)):
                    self._send_off(source, one, reason)

    def _send_off(self, source: InstanceView, one: SequenceView, reason: MoveReason) -> None:
        came = one.session in self.planned and self.planned[one.session].move.destination == source.key
        if not one.movable or (one.session in self.planned and not came):
            return
        able = [view for view in self._takers(source.key) if _has_room(view, one)]
        best = max(able, key=lambda view: (_fits(view, one), freeness(view)), default=None)
        if best is not None:
            self._add(Move(one.session, source.key, best.key, reason))

    # ---- who waits

    def start(self) -> None:
        """Where the first that waits has no room, those that do go where there is room for them now; room is made for
        the first if there is none."""
        for key in sorted(self._views, key=lambda key: freeness(self._views[key])):
            view = self._views[key]
            first = first_waiting(view)
            if not view.may_decode or first is None:
                continue
            if not _may_begin(view, first):
                if not self._start_elsewhere(view, first):
                    self._make_room(key, first)
                for one in view.sequences:
                    if one.waits and one is not first:
                        self._start_elsewhere(self._views[key], one)
            if first in self._views[key].sequences and _may_begin(self._views[key], first):
                self._kept[key] = view.load.blocks_of(first.tokens + 1)

    def _start_elsewhere(self, source: InstanceView, one: SequenceView) -> bool:
        if not one.movable or one.session in self.planned:
            return False
        able = [
            view
            for view in self._takers(source.key)
            if view.may_prefill and not view.load.waiting and _fits(view, one)
        ]
        best = max(able, key=lambda view: freeness(joined(view, one)), default=None)
        if best is not None:
            self._add(Move(one.session, source.key, best.key, MoveReason.START))
        return best is not None

    def _make_room(self, key: Key, first: SequenceView) -> None:
        """Free memory is scattered over instances: what runs here is moved into it until the first has room, and those
        that stay have room to grow. Nothing is moved where all together have too little."""
        spare = sum(max(0, view.load.total_blocks - view.load.needed_blocks) for view in self._takers(key))
        short = self._short(key, first)
        while 0 < short <= spare and self._make_room_once(self._views[key], short):
            short = self._short(key, first)

    def _make_room_once(self, source: InstanceView, short: int) -> bool:
        """Move the smallest that frees enough, else the largest."""

        def blocks(one: SequenceView) -> int:
            return source.load.blocks_of(one.tokens + one.remaining)

        able = sorted(self._victims(source, least_remaining=1), key=blocks)
        fewer = [one for one in able if blocks(one) < short]
        for one in [*able[len(fewer) :], *reversed(fewer)]:
            takers = [view for view in self._takers(source.key) if self._saves(source, view, one)]
            if takers:
                freest = max(takers, key=freeness)
                self._add(Move(one.session, source.key, freest.key, MoveReason.MAKE_ROOM))
                return True
        return False

    def _short(self, key: Key, first: SequenceView) -> int:
        """Blocks that are lacking for what runs there and the first that waits, at their peak."""
        load = self._views[key].load
        now = load.blocks_of(first.tokens + 1) - load.room_blocks
        return max(
            now, load.needed_blocks + load.blocks_of(first.tokens + first.remaining) - load.total_blocks
        )

    def _saves(self, source: InstanceView, to: InstanceView, one: SequenceView) -> bool:
        """Whether memory that is wanted at the source is free there, for those who have it now and for a while; both
        are freer afterwards than the source was, and the sequence would have kept it for longer than the copy takes."""
        kept = self._kept[to.key]
        if not _has_room(to, one, kept):
            return False
        there = joined(to, one)
        if there.load.needed_blocks + kept > to.load.total_blocks:
            return False
        if steps_left(there.load) < self._cfg.enough_steps:
            return False
        if min(freeness(left(source, one)), freeness(there)) <= freeness(source):
            return False
        if self._cost is None:
            return True
        keeps_s = one.remaining * _step_s(source.load, self._cost)
        return keeps_s > self._cost.between_s(source.address, to.address, one.tokens)

    # ---- what is better elsewhere

    def relieve(self, before: frozenset[Key]) -> frozenset[Key]:
        """Pair the least free with the freest; those that are to be relieved, `before` these now and from now on."""
        limits = {
            key: self._cfg.enough_steps if key in before else self._cfg.low_steps for key in self._views
        }
        low = [view for view in self._views.values() if view.may_decode and freeness(view) < limits[view.key]]
        for source in sorted(low, key=freeness):
            while self._relieve_once(source.key):
                pass
        return frozenset(view.key for view in low)

    def _relieve_once(self, key: Key) -> bool:
        source = self._views[key]
        if freeness(source) >= self._cfg.enough_steps:
            return False
        takers = [view for view in self._takers(key) if freeness(view) >= self._cfg.high_steps]
        freest = max(takers, key=freeness, default=None)
        if freest is not None:
            victim = next((one for one in self._victims(source) if self._helps(source, freest, one)), None)
            if victim is not None:
                self._add(Move(victim.session, key, freest.key, self._reason(source)))
                return True
        return steps_left(source.load) < self._cfg.low_steps and self._save_once(source)

    def _save_once(self, source: InstanceView) -> bool:
        """Memory is about to run out here, and is free elsewhere, if not for all that is predicted."""
        moves = [
            (min(freeness(left(source, one)), freeness(joined(to, one))), one.session, to.key)
            for one in self._victims(source)
            for to in self._takers(source.key)
            if self._saves(source, to, one)
        ]
        if moves:
            _, session, to = max(moves)
            self._add(Move(session, source.key, to, self._reason(source)))
        return bool(moves)

    def _victims(self, source: InstanceView, least_remaining: int = 0) -> list[SequenceView]:
        """Those that may go: of low priority first, and then by the seconds of copying for a block that is freed."""
        able = [
            one
            for one in source.sequences
            if one.movable
            and not one.waits
            and one.session not in self.planned
            and one.remaining >= (least_remaining or self._cfg.least_remaining)
        ]

        def price(one: SequenceView) -> tuple[int, float, str]:
            seconds = self._cost.between_s(source.address, "", one.tokens) if self._cost else one.tokens
            return one.priority, seconds / (one.tokens + one.remaining), one.session

        return sorted(able, key=price)

    def _helps(self, source: InstanceView, to: InstanceView, one: SequenceView) -> bool:
        """Whether both are freer afterwards than the source was, neither asks for relief for it, and the gain pays."""
        if not _has_room(to, one):
            return False
        was, there = freeness(source), joined(to, one)
        if usage_blocks(there.load) > there.load.total_blocks or freeness(there) <= max(
            was, self._cfg.low_steps
        ):
            return False
        return freeness(left(source, one)) > was and self._pays(source, there, one)

    def _pays(self, source: InstanceView, there: InstanceView, one: SequenceView) -> bool:
        """Whether the copy takes less time than it gains: the sequence's own steps that are shorter elsewhere, and
        where memory is wanted, the time for which it would have kept it."""
        if self._cost is None:
            return True
        here_s, there_s = _step_s(source.load, self._cost), _step_s(there.load, self._cost)
        gain_s = one.remaining * max(0.0, here_s - there_s)
        if usage_blocks(source.load) > source.load.total_blocks:
            gain_s += one.remaining * here_s
        return gain_s > self._cost.between_s(source.address, there.address, one.tokens)

    def _reason(self, source: InstanceView) -> MoveReason:
        load = source.load
        if load.head_blocks and load.needed_blocks + load.head_blocks > load.total_blocks:
            return MoveReason.MAKE_ROOM
        common = replace(source, load=replace(load, high_priority=0))
        if load.high_priority and freeness(common) >= self._cfg.low_steps:
            return MoveReason.HEADROOM
        return MoveReason.BALANCE

    # ---- what is under way

    def _takers(self, source: Key) -> list[InstanceView]:
        """Whoever may take a sequence of the source within the bounds on what is under way."""
        most, per_link = self._cfg.most_per_instance, self._cfg.most_per_link
        if self._ends[source] >= most:
            return []
        return [
            view
            for view in self._views.values()
            if view.key != source
            and view.may_decode
            and self._ends[view.key] < most
            and self._links[source, view.key] < per_link
        ]

    def _add(self, move: Move) -> None:
        self.moves.append(move)
        self.planned[move.session] = Planned(move, self._now)
        self._count(move)
        self._shift(move.session, move)

    def _count(self, move: Move) -> None:
        if move.reason is MoveReason.START:
            return  # nothing is copied
        self._links[move.source, move.destination] += 1
        self._ends[move.source] += 1
        self._ends[move.destination] += 1

    def _shift(self, session: str, move: Move) -> None:
        source, to = self._views.get(move.source), self._views.get(move.destination)
        one = next((one for one in source.sequences if one.session == session), None) if source else None
        if source is None or one is None:
            return
        self._views[source.key] = left(source, one)
        if to is not None:
            self._views[to.key] = joined(to, one)


def _has_room(view: InstanceView, one: SequenceView, kept: int = 0) -> bool:
    """Whether it can have the sequence's memory and a slot now, beside blocks that are `kept` for another."""
    load = view.load
    return load.free_slots > 0 and load.blocks_of(one.tokens + 1) + kept <= load.room_blocks


def _may_begin(view: InstanceView, one: SequenceView) -> bool:
    """Whether one that waits there has the memory that it needs now."""
    return view.load.blocks_of(one.tokens + 1) <= view.load.room_blocks


def _fits(view: InstanceView, one: SequenceView) -> bool:
    """Whether it is predicted to have room until all end."""
    there = joined(view, one)
    return _has_room(view, one) and usage_blocks(there.load) <= there.load.total_blocks


def _step_s(load: LoadView, cost: CostModel) -> float:
    return cost.step.predict(StepShape(decodes=load.decoding, context_tokens=load.decode_tokens))
