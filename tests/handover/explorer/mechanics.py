"""How the explored world moves: instances, routers with a client, a network that loses, doubles and delays.

A state is a tuple of small integers, one for each part; parts are interned, and what a part does on an event is
computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from penstock.handover.values import Incarnation

from .breach import Breach
from .front import Desk, Front, opened
from .instance import Data, Driver, Instance, born
from .mail import never_matters
from .parts import Parts
from .scenario import FAULTS, KINDS, Scenario
from .tokens import Tokens, prompt
from .words import words

State = tuple[int, ...]
"""Ids of the parts: the front, the net, the budget, and the instances from place `FIRST` on."""
FRONT, NET, BUDGET, FIRST = range(4)
CONTROLLER = 99
"""Where a condemnation goes; it is no part of the state."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A message in a label."""

    id: int


class Mechanics:
    """States, and what one of them becomes by one event."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        shape = scenario.shape
        self.names = scenario.instances
        self.side = {name: FIRST + place for place, name in enumerate(self.names)}
        self.tokens = Tokens()
        ids = prompt(shape.prompt)
        self.driver = Driver(shape, self.tokens, ids)
        self.desk = Desk(shape, self.tokens, ids)
        self.messages, self.events, self.budgets = Parts(), Parts(), Parts(lambda left: any(left[:-1]))
        self.instances = Parts(lambda inst: inst.dead or inst.life > 0 or inst.apart)
        self.fronts = Parts(lambda front: any(router.dead for router in front.routers))
        self.nets = Parts(lambda net: any(isinstance(self.messages.values[m][-1], Data) for m in net))
        self._fading, self._worn, self._heavy = self.instances.flags, self.fronts.flags, self.nets.flags
        self._reactions: dict[tuple, Any] = {}
        self._arrivals: dict[int, tuple[int, int | None]] = {}
        self._added: dict[tuple, int] = {}
        self._kept: dict[tuple, int] = {}
        self._unread: dict[tuple[int, int], int] = {}
        self._dead_letters: dict[tuple[int, int], bool] = {}
        self._streams: dict[int, str] = {}
        self._spent: dict[tuple[int, str], int | None] = {}

    def start(self) -> State:
        limits = {**self.scenario.budget, "faults": self.scenario.faults}
        budget = tuple(limits.get(kind, 0) for kind in (*KINDS, "faults"))
        return (
            self.fronts.id(opened(self.scenario.routers)),
            self.nets.id(() if self.scenario.ordered else frozenset()),
            self.budgets.id(budget),
            *(self.instances.id(born(name, 0, self.scenario.shape)) for name in self.names),
        )

    def good(self, state: State) -> bool:
        """The client has all or was told the end, and everything is free on every instance that can be asked."""
        if not self.fronts.values[state[FRONT]].settled:
            return False
        return all(self._clean(inst_id) for inst_id in state[FIRST:])

    def _clean(self, inst_id: int) -> bool:
        inst: Instance = self.instances.values[inst_id]
        return inst.dead or inst.hung or inst.apart or inst.free

    def at(self, state: State, name: str) -> Instance:
        return self.instances.values[state[self.side[name]]]

    def all(self, state: State) -> list[Instance]:
        return [self.instances.values[inst_id] for inst_id in state[FIRST:]]

    # ---- reactions, each computed once

    def _react(self, inst: bool, part_id: int, event_id: int) -> tuple[int, tuple[int, ...]]:
        """What an instance (or the front) becomes on an event, and the ids of its messages."""
        key = (inst, part_id, event_id)
        known = self._reactions.get(key)
        if known is None:
            parts = self.instances if inst else self.fronts
            react: Callable = self.driver.react if inst else self.desk.react
            event = self.events.values[event_id]
            try:
                value, posts = react(parts.values[part_id], event)
                known = (parts.id(value), tuple(self.messages.id(post) for post in posts))
            except AssertionError as broken:
                known = Breach(str(broken) or f"an assertion in {_where(broken)}")
            self._reactions[key] = known
        if isinstance(known, Breach):
            raise known
        return known

    def _spend(self, budget: int, kind: str) -> int | None:
        """The budget that is left after one more of `kind`, None where there is none left."""
        key = (budget, kind)
        if key not in self._spent:
            left = list(self.budgets.values[budget])
            left[KINDS.index(kind)] -= 1
            if kind in FAULTS:
                left[-1] -= 1
            fits = left[KINDS.index(kind)] >= 0 and left[-1] >= 0
            self._spent[key] = self.budgets.id(tuple(left)) if fits else None
        return self._spent[key]

    # ---- the state after something happened

    def _after(
        self, state: State, posts: tuple[int, ...], minus: int | None, part: int, part_id: int
    ) -> State:
        """`state` with part number `part` replaced, `posts` under way and message `minus` no longer."""
        net = state[NET]
        if minus is not None or posts:
            key = (net, minus, posts)
            known = self._added.get(key)
            if known is None:
                known = self._added[key] = self.nets.id(self._mixed(self.nets.values[net], minus, posts))
            net = known
        after = [*state]
        after[part] = part_id
        fading = any(self._fading[inst_id] for inst_id in after[FIRST:])
        if fading or self._worn[after[FRONT]] or self._heavy[net]:
            net = self._swept(net, after)
        for place in {part, *(self._place(mid) for mid in posts)}:
            if FIRST <= place < CONTROLLER:
                net = self._without_dead_letters(net, after[place])
        after[NET] = net
        return tuple(after)

    def _mixed(self, mids, minus: int | None, posts: tuple[int, ...]):
        if not self.scenario.ordered:
            return mids - {minus} | set(posts)
        left = [*mids]
        if minus is not None:
            left.remove(minus)
        return tuple(sorted([*left, *posts], key=self.stream))

    def stream(self, mid: int) -> str:
        """Names what a message is in: its two ends, and whether it is blocks."""
        known = self._streams.get(mid)
        if known is None:
            post = self.messages.values[mid]
            known = self._streams[mid] = f"{post[0]} {post[1]} {isinstance(post[-1], Data)}"
        return known

    def _place(self, mid: int) -> int:
        return (self._arrivals.get(mid) or self._arrival(mid))[0]

    def _without_dead_letters(self, net: int, inst_id: int) -> int:
        """The net without messages to the instance that change nothing there, now and whenever they come.

        The one reduction of the order of events: to take them in at once or later is the same.
        """
        key = (net, inst_id)
        kept = self._unread.get(key)
        if kept is None:
            mids = self.nets.values[net]
            kept = self._unread[key] = self.nets.id(
                type(mids)(mid for mid in mids if not self._is_dead_letter(mid, inst_id))
            )
        return kept

    def _is_dead_letter(self, mid: int, inst_id: int) -> bool:
        key = (mid, inst_id)
        known = self._dead_letters.get(key)
        if known is None:
            known = self._dead_letters[key] = self._changes_nothing(mid, inst_id)
        return known

    def _changes_nothing(self, mid: int, inst_id: int) -> bool:
        post, inst = self.messages.values[mid], self.instances.values[inst_id]
        if post[0] != inst.name or not never_matters(post[1], post[2], inst):
            return False
        event_id = self._arrival(mid)[1]
        try:
            return event_id is not None and self._react(True, inst_id, event_id) == (inst_id, ())
        except Breach:
            return False  # without a rule what never matters may

    def _swept(self, net: int, after: list[int]) -> int:
        """The net without messages that nobody will ever take."""
        key = (net, after[FRONT], *after[FIRST:])
        kept = self._kept.get(key)
        if kept is None:
            insts = {name: self.instances.values[after[place]] for name, place in self.side.items()}
            front = self.fronts.values[after[FRONT]]
            mids = self.nets.values[net]
            left = type(mids)(m for m in mids if not self._hopeless(self.messages.values[m], insts, front))
            kept = self._kept[key] = self.nets.id(left)
        return kept

    def _hopeless(self, post: tuple, insts: dict[str, Instance], front: Front) -> bool:
        """Nobody will ever take this message."""
        if post[0] == "condemn":
            return self._is_dead(post[1], insts)
        to, sender, message = post
        if any(name in insts and insts[name].apart for name in (to, getattr(sender, "instance", ""))):
            return True
        if to not in insts:
            return front.routers[int(to[1:])].dead and not self.scenario.budget.get("restart")
        inst = insts[to]
        if isinstance(message, tuple):
            return message[0] != inst.incarnation or inst.dead
        if isinstance(message, Data):
            lease, mark = message.stage.lease, inst.seat.mark
            if inst.dead or message.stage.destination != inst.incarnation:
                return True
            known = any(known.lease == lease for known in inst.seat.leases)
            return mark is not None and mark >= lease.epoch and not known
        return inst.dead and not self.scenario.budget.get("boot")

    @staticmethod
    def _is_dead(who: Incarnation, insts: dict[str, Instance]) -> bool:
        inst = insts[who.instance]
        return inst.life > who.life or inst.dead

    def _tell(self, state: State, name: str, event: tuple, label: tuple = ()) -> State:
        """The state after instance `name` met `event`."""
        return self._met(state, self.side[name], self.events.id(event), label=label)

    def _met(
        self, state: State, side: int, event_id: int, minus: int | None = None, label: tuple = ()
    ) -> State:
        """The state after the instance of that side met the event, and message `minus` is no longer under way."""
        try:
            inst, posts = self._react(True, state[side], event_id)
        except Breach as breach:
            raise Breach(
                str(breach), label or (self.names[side - FIRST], *self.events.values[event_id])
            ) from None
        return self._after(state, posts, minus, side, inst)

    def _ask(self, state: State, event: tuple, minus: int | None = None) -> State:
        """The state after the front met `event`."""
        try:
            front, posts = self._react(False, state[FRONT], self.events.id(event))
        except Breach as breach:
            raise Breach(str(breach), event) from None
        return self._after(state, posts, minus, FRONT, front)

    def _deliver(self, state: State, mid: int, keep: bool = False) -> State | None:
        """The state after message `mid` arrived; None where it cannot now."""
        side, event_id = self._arrivals.get(mid) or self._arrival(mid)
        minus = None if keep else mid
        if side == FRONT:
            _, index, _, _ = event = self.events.values[event_id]
            return (
                None
                if self.fronts.values[state[FRONT]].routers[index].dead
                else self._ask(state, event, minus)
            )
        if side == CONTROLLER:
            return self._kill(state, self.messages.values[mid][1].instance, minus)
        inst: Instance = self.instances.values[state[side]]
        if inst.dead or inst.hung:
            return None
        if event_id is None:  # blocks for a posted receive
            data: Data = self.messages.values[mid][2]
            waiting = next(
                (r for r in inst.receives if r.stage == data.stage and not r.landed and not r.closed), None
            )
            return waiting and self._met(state, side, self.events.id(("arrive", waiting, data.tags)), mid)
        return self._met(state, side, event_id, minus)

    def _arrival(self, mid: int) -> tuple[int, int | None]:
        """Whom a message goes to, and the event that it is there."""
        post = self.messages.values[mid]
        if post[0] == "condemn":
            found = (CONTROLLER, None)
        else:
            to, sender, message = post
            if to not in self.side:
                found = (FRONT, self.events.id(("hear", int(to[1:]), sender, message)))
            elif isinstance(message, Data):
                found = (self.side[to], None)
            elif isinstance(message, tuple):
                found = (self.side[to], self.events.id(("router", sender, message[1])))
            else:
                found = (self.side[to], self.events.id(("peer", sender, message)))
        self._arrivals[mid] = found
        return found

    def _set(self, state: State, name: str, inst: Instance) -> State:
        return self._after(state, (), None, self.side[name], self.instances.id(inst))

    def _kill(self, state: State, name: str, minus: int | None) -> State:
        inst: Instance = self.instances.values[state[self.side[name]]]
        dead = replace(born(name, inst.life, self.scenario.shape), dead=True)
        return self._after(state, (), minus, self.side[name], self.instances.id(dead))

    def _revive(self, state: State, name: str) -> State:
        inst: Instance = self.instances.values[state[self.side[name]]]
        return self._set(state, name, born(name, inst.life + 1, self.scenario.shape))

    # ---- words for people

    def words(self, label: tuple) -> str:
        """A step of a trace, readable."""
        return " ".join(
            self._post(part.id) if isinstance(part, Mail) else words(part, self.tokens) for part in label
        )

    def _post(self, mid: int) -> str:
        post = self.messages.values[mid]
        if post[0] == "condemn":
            return f"condemnation of {words(post[1], self.tokens)}"
        to, sender, message = post
        told = message[1] if type(message) is tuple else message
        return f"{words(sender, self.tokens)} -> {to}: {words(told, self.tokens)}"


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
