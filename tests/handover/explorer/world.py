"""The explored world: two instances, routers with a client, a network that loses, doubles and delays, bounded faults.

A state is a tuple of small integers, one for each part; parts are interned, and what a part does on an event is
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.handover.session import Session
from penstock.handover.values import Incarnation, MoveMode

from .breach import Breach
from .front import Desk, Front, opened
from .instance import Data, Driver, Instance, Shape, born
from .tokens import Tokens, prompt
from .words import words

NAMES = "AB"
KINDS = (
    "lose",
    "double",
    "early",
    "crash",
    "boot",
    "hang",
    "wake",
    "break",
    "suspect",
    "router",
    "restart",
    "cut",
    "resume",
    "move",
    "cancel",
    "preempt",
)
"""What may happen a bounded number of times.

`boot`, `wake`, `restart`, `resume`, `move`, `cancel` and `preempt` are choices, the others faults.
"""
FAULTS = frozenset(KINDS) - {"boot", "wake", "restart", "resume", "move", "cancel", "preempt"}
EARLY, BREAK = KINDS.index("early"), KINDS.index("break")


@dataclass(frozen=True)
class Scenario:
    """Sizes, what may happen and how often, and how the session begins."""

    name: str
    shape: Shape = Shape()
    budget: dict[str, int] = field(default_factory=dict)
    faults: int = 99
    """Most faults in all."""
    routers: int = 1
    mode: MoveMode = MoveMode.LIVE
    handover: bool = True
    """The session starts at A and is to be handed over to B; otherwise it starts at A."""
    crashing: str = NAMES
    hanging: str = NAMES
    serving: str = NAMES
    """Where a session that was recovered or resumed may be sent."""
    picks_anew: bool = True
    """Another destination is picked where the first handover came to nothing; otherwise the session stays."""
    recover_by_silence: bool = True
    early: frozenset[str] = frozenset(
        {"reserve", "settle", "lease", "stop", "beat", "silence", "grace", "nudge"}
    )
    """What may come before its time: an instance's clocks, heartbeats, the router's patience, the grace time."""


State = tuple[int, ...]
"""Ids of the parts: both instances, the front, the net, the budget."""
A, B, FRONT, NET, BUDGET = range(5)
SIDE = {"A": A, "B": B}
CONTROLLER = 9
"""Where a condemnation goes; it is no part of the state."""


Move = tuple[bool, tuple, State]
"""One step of the world: whether it is free (spends no fault and no choice), its label, and the state after it."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A message in a label."""

    id: int


class _Parts:
    """Gives equal values the same small integer; `flags` holds what `flag` says of each."""

    def __init__(self, flag: Callable[[Any], bool] = bool) -> None:
        self.ids: dict[Any, int] = {}
        self.values: list[Any] = []
        self.flag = flag
        self.flags: list[bool] = []

    def id(self, value: Any) -> int:
        known = self.ids.get(value)
        if known is None:
            known = self.ids[value] = len(self.values)
            self.values.append(value)
            self.flags.append(self.flag(value))
        return known


class World:
    """States and what follows on each."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        shape = scenario.shape
        self.tokens = Tokens()
        ids = prompt(shape.prompt)
        self.driver = Driver(shape, self.tokens, ids)
        self.desk = Desk(shape, self.tokens, ids)
        self.messages, self.events, self.budgets = _Parts(), _Parts(), _Parts(lambda left: any(left[:-1]))
        self.instances = _Parts(lambda inst: inst.dead or inst.life > 0)
        self.fronts = _Parts(lambda front: any(router.dead for router in front.routers))
        self.nets = _Parts(lambda net: any(isinstance(self.messages.values[m][-1], Data) for m in net))
        self._fading, self._worn, self._heavy = self.instances.flags, self.fronts.flags, self.nets.flags
        self._reactions: dict[tuple, Any] = {}
        self._offers: dict[int, tuple] = {}
        self._arrivals: dict[int, tuple[int, int | None]] = {}
        self._added: dict[tuple, int] = {}
        self._kept: dict[tuple, int] = {}
        self._spent: dict[tuple[int, str], int | None] = {}

    def start(self) -> State:
        limits = {**self.scenario.budget, "faults": self.scenario.faults}
        budget = tuple(limits.get(kind, 0) for kind in (*KINDS, "faults"))
        return (
            self.instances.id(born("A", 0, self.scenario.shape)),
            self.instances.id(born("B", 0, self.scenario.shape)),
            self.fronts.id(opened(self.scenario.routers)),
            self.nets.id(frozenset()),
            self.budgets.id(budget),
        )

    def good(self, state: State) -> bool:
        """The client has all or was told the end, and everything is free on every instance that lives."""
        if not self.fronts.values[state[FRONT]].settled:
            return False
        return all(self._clean(inst) for inst in (state[A], state[B]))

    def _clean(self, inst_id: int) -> bool:
        inst: Instance = self.instances.values[inst_id]
        return inst.dead or inst.hung or inst.free

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
                known = self._added[key] = self.nets.id(self.nets.values[net] - {minus} | set(posts))
            net = known
        after = [*state]
        after[part] = part_id
        after[NET] = net
        if self._fading[after[A]] or self._fading[after[B]] or self._worn[after[FRONT]] or self._heavy[net]:
            after[NET] = self._swept(net, after[A], after[B], after[FRONT])
        return tuple(after)

    def _swept(self, net: int, a: int, b: int, front_id: int) -> int:
        """The net without messages that nobody will ever take."""
        key = (net, a, b, front_id)
        kept = self._kept.get(key)
        if kept is None:
            insts = {"A": self.instances.values[a], "B": self.instances.values[b]}
            front = self.fronts.values[front_id]
            mids = self.nets.values[net]
            left = frozenset(m for m in mids if not self._hopeless(self.messages.values[m], insts, front))
            kept = self._kept[key] = self.nets.id(left)
        return kept

    def _hopeless(self, post: tuple, insts: dict[str, Instance], front: Front) -> bool:
        """Nobody will ever take this message."""
        if post[0] == "condemn":
            return self._is_dead(post[1], insts)
        to, sender, message = post
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

    # ---- everything that may happen next

    def moves(self, state: State) -> list[Move]:
        """Every step that the world may take from here; raises `Breach` where one breaks a law, with its label."""
        moves: list[Move] = []
        for steps in (self._deliveries, self._local_steps, self._copies, self._front_steps, self._deaths):
            for label, after in steps(state):
                moves.append((True, label, after))
        quiet, left = not moves, self.budgets.values[state[BUDGET]]
        if quiet or left[EARLY] or left[BREAK]:
            for what, label, compute in self._due(state):
                if quiet:
                    moves.append((True, label, compute(state)))
                elif what == "break" or what in self.scenario.early:
                    self._spending(moves, state, "break" if what == "break" else "early", label, compute)
        if self.budgets.flags[state[BUDGET]]:
            for kind, label, compute in self._choices(state):
                self._spending(moves, state, kind, label, compute)
        return [move for move in moves if move[2] != state]

    def _spending(self, moves: list[Move], state: State, kind: str, label: tuple, compute) -> None:
        budget = self._spend(state[BUDGET], kind)
        if budget is not None:
            moves.append((False, (kind, *label), compute((*state[:BUDGET], budget))))

    def _tell(self, state: State, name: str, event: tuple, label: tuple = ()) -> State:
        """The state after instance `name` met `event`."""
        return self._met(state, SIDE[name], self.events.id(event), label=label)

    def _met(
        self, state: State, side: int, event_id: int, minus: int | None = None, label: tuple = ()
    ) -> State:
        """The state after the instance of that side met the event, and message `minus` is no longer under way."""
        try:
            inst, posts = self._react(True, state[side], event_id)
        except Breach as breach:
            raise Breach(str(breach), label or (NAMES[side], *self.events.values[event_id])) from None
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
            if to not in SIDE:
                found = (FRONT, self.events.id(("hear", int(to[1:]), sender, message)))
            elif isinstance(message, Data):
                found = (SIDE[to], None)
            elif isinstance(message, tuple):
                found = (SIDE[to], self.events.id(("router", sender, message[1])))
            else:
                found = (SIDE[to], self.events.id(("peer", sender, message)))
        self._arrivals[mid] = found
        return found

    def _deliveries(self, state: State) -> Iterator[tuple[tuple, State]]:
        for mid in self.nets.values[state[NET]]:
            after = self._deliver(state, mid)
            if after is not None:
                yield ("arrives", Mail(mid)), after

    def _offered(self, inst_id: int) -> tuple:
        """(kind, event, event id) of what the instance may do by itself."""
        offers = self._offers.get(inst_id)
        if offers is None:
            offered = self.driver.offers(self.instances.values[inst_id])
            offers = self._offers[inst_id] = tuple(
                (kind, event, self.events.id(event)) for kind, event in offered
            )
        return offers

    def _local_steps(self, state: State) -> Iterator[tuple[tuple, State]]:
        for side in (A, B):
            for kind, event, event_id in self._offered(state[side]):
                if kind == "go":
                    yield (NAMES[side], *event), self._met(state, side, event_id)

    def _copies(self, state: State) -> Iterator[tuple[tuple, State]]:
        """Writes under way go on; those of a hung instance too, but nobody may rely on that (see `_choices`)."""
        for name, other in ("AB", "BA"):
            inst: Instance = self.instances.values[state[SIDE[name]]]
            if inst.writes and not inst.dead and not inst.hung:
                for writing in inst.writes:
                    yield from self._copy(state, name, other, writing)

    def _copy(self, state: State, name: str, other: str, writing) -> Iterator[tuple[tuple, State]]:
        if writing.landed == writing.stage.count and (writing.one_sided or not writing.stage.count):
            yield (name, "written"), self._tell(state, name, ("written", writing, True))
        elif not writing.one_sided:
            yield (name, "hands to the pair"), self._tell(state, name, ("gather", writing))
        else:
            yield (name, "writes a block"), self._land(state, name, other, writing)
        there: Instance = self.instances.values[state[SIDE[other]]]
        if there.dead or there.incarnation != writing.stage.destination:
            yield (name, "fails to write"), self._tell(state, name, ("written", writing, False))

    def _land(self, state: State, name: str, other: str, writing) -> State:
        inst: Instance = self.instances.values[state[SIDE[name]]]
        there: Instance = self.instances.values[state[SIDE[other]]]
        label = (name, "writes a block")
        after = self._tell(state, name, ("copied", writing), label=label)
        if there.dead or there.incarnation != writing.stage.destination:
            return after
        ids = self._content(inst, writing, label)
        position = writing.stage.first + writing.landed
        block = dict(inst.targets)[writing.stage.lease][position]
        return self._tell(after, other, ("land", writing.stage, block, position, ids), label=label)

    def _content(self, inst: Instance, writing, label) -> tuple:
        seq = inst.find(writing.origin)
        assert seq is not None, label
        tag = inst.pool[seq.blocks[writing.stage.first + writing.landed]].tag
        assert tag is not None
        return tag[1]

    def _front_steps(self, state: State) -> Iterator[tuple[tuple, State]]:
        front: Front = self.fronts.values[state[FRONT]]
        live = [inst.incarnation for inst in self._alive(state) if not inst.hung]
        for index, router in enumerate(front.routers):
            if router.dead or router.session is None:
                continue
            if not router.session.closed and (front.client == "cut" or front.at != index):
                yield (f"r{index}", "notices that its client has gone"), self._ask(state, ("cancel", index))
            if router.dispatch_due:
                for prefill, decode in self._assignments(live, router.session.attempt, router.session.n):
                    label = (f"r{index}", "dispatches to", prefill, decode)
                    yield label, self._ask(state, ("dispatch", index, prefill, decode))
            if router.destination_due:
                owner = router.session.owner
                if owner is None or self._decodes(owner):
                    yield (f"r{index}", "lets it stay"), self._ask(state, ("stay", index))
                for inc in filter(self._decodes, live) if self.scenario.picks_anew else ():
                    yield (
                        (f"r{index}", "picks anew", inc),
                        self._ask(state, ("move", index, inc, MoveMode.LIVE, True)),
                    )

    def _assignments(
        self, live: list[Incarnation], attempt: int, n: int
    ) -> list[tuple[Incarnation, Incarnation | None]]:
        """Where a session may be sent: first to A, and on to B in a scenario with a handover; later anywhere."""
        if attempt == 0 and n == 0 and any(inc.instance == "A" for inc in live):
            live = [inc for inc in live if inc.instance == "A"] + [i for i in live if i.instance == "B"]
            return [(live[0], live[1] if self.scenario.handover and len(live) > 1 else None)]
        there = [inc for inc in live if inc.instance in self.scenario.serving]
        decoders = [inc for inc in live if self._decodes(inc)]
        return [(inc, decode) for inc in there for decode in ([None] if self._decodes(inc) else decoders)]

    def _decodes(self, inc: Incarnation) -> bool:
        return inc.instance in self.scenario.shape.decodes

    def _alive(self, state: State) -> list[Instance]:
        insts = (self.instances.values[state[A]], self.instances.values[state[B]])
        return [inst for inst in insts if not inst.dead]

    def _deaths(self, state: State) -> Iterator[tuple[tuple, State]]:
        """Whoever leans on a dead incarnation hears of its death."""
        insts = {"A": self.instances.values[state[A]], "B": self.instances.values[state[B]]}
        if all(inst.life == 0 and not inst.dead for inst in insts.values()):
            return
        for name, inst in insts.items():
            if inst.dead or inst.hung:
                continue
            for peer in self._peers(inst):
                if self._is_dead(peer, insts):
                    after = self._tell(state, name, ("lost", peer))
                    if after[SIDE[name]] != state[SIDE[name]]:
                        yield (name, "hears of the death of", peer), after
        for index, router in enumerate(self.fronts.values[state[FRONT]].routers):
            session = router.session
            if not router.dead and session is not None and session.owner is not None and not session.closed:
                if self._is_dead(session.owner, insts):
                    yield (
                        (f"r{index}", "hears of the death of", session.owner),
                        self._ask(state, ("lost", index, session.owner)),
                    )

    @staticmethod
    def _peers(inst: Instance) -> list[Incarnation]:
        return sorted({s.peer for s in inst.seat.sources} | {lease.source for lease in inst.seat.leases})

    # ---- what is due when nothing else happens, and may come early

    def _due(self, state: State) -> Iterator[tuple[str, tuple, Callable[[State], State]]]:
        front: Front = self.fronts.values[state[FRONT]]
        for name, inst_id in zip(NAMES, (state[A], state[B]), strict=True):
            inst: Instance = self.instances.values[inst_id]
            if inst.dead or inst.hung:
                continue
            for kind, event, _ in self._offered(inst_id):
                if kind == "due":
                    what = event[1].value if event[0] == "timeout" else "beat"
                    yield what, (name, *event), self._telling(name, event)
            for receiving in inst.receives:
                if not receiving.landed and not receiving.closed:
                    yield (
                        "break",
                        (name, "fails to receive"),
                        self._telling(name, ("received", receiving, False)),
                    )
            for writing in inst.writes:
                yield "break", (name, "fails to write"), self._telling(name, ("written", writing, False))
            holding = inst.seat.holding
            if holding is not None and front.routers[int(holding.router[1:])].dead:
                yield "grace", (name, "drops for a silent router"), self._telling(name, ("router_silent",))
        for index, router in enumerate(front.routers):
            session = router.session
            if router.dead or session is None or session.closed:
                continue
            if (
                self.scenario.recover_by_silence
                and not router.dispatch_due
                and not self._spoken_for(state, session)
            ):
                yield "silence", (f"r{index}", "hears nothing for long"), self._asking(("silent", index))
            if session.pending is not None:
                yield "nudge", (f"r{index}", "nudges"), self._asking(("nudge", index))

    def _spoken_for(self, state: State, session: Session) -> bool:
        """Somebody owns the session under its current or a higher epoch, and says so at every heartbeat."""
        holdings = (inst.seat.holding for inst in self._alive(state) if not inst.hung)
        return any(holding is not None and holding.epoch >= session.epoch for holding in holdings)

    def _telling(self, name: str, event: tuple) -> Callable[[State], State]:
        return lambda state: self._tell(state, name, event)

    def _asking(self, event: tuple) -> Callable[[State], State]:
        return lambda state: self._ask(state, event)

    # ---- faults and choices

    def _choices(self, state: State) -> Iterator[tuple[str, tuple, Callable[[State], State]]]:
        left = dict(zip(KINDS, self.budgets.values[state[BUDGET]], strict=False))
        if left["lose"] or left["double"]:
            yield from self._network_faults(state)
        for name in NAMES:
            yield from self._instance_faults(state, name, left)
        front: Front = self.fronts.values[state[FRONT]]
        for index, router in enumerate(front.routers):
            if router.dead:
                yield "restart", (f"r{index}",), self._asking(("restart", index))
                continue
            if router.session is not None:
                yield "router", (f"r{index}", "crashes"), self._asking(("crash", index))
            if router.session is None or router.session.closed:
                continue
            yield "cancel", (f"r{index}",), self._asking(("cancel", index))
            if left["move"] and router.session.owner is not None and router.session.pending is None:
                for inst in self._alive(state):
                    if inst.incarnation != router.session.owner:
                        yield (
                            "move",
                            (f"r{index}", inst.incarnation),
                            self._asking(("move", index, inst.incarnation, self.scenario.mode, False)),
                        )
            if "silence" in self.scenario.early and not router.dispatch_due:
                yield "early", (f"r{index}", "hears nothing for a while"), self._asking(("silent", index))
            if router.session.owner is not None:
                yield "suspect", (f"r{index}",), self._asking(("lost", index, router.session.owner))
        if front.client == "waits":
            yield "cut", (), self._asking(("cut",))
        if front.client == "cut" and left["resume"]:
            for index, router in enumerate(front.routers):
                if not router.dead:
                    for count in range(front.had, len(front.routers[front.at].output) + 1):
                        if count < self.scenario.shape.output:
                            yield "resume", (f"r{index}", count), self._asking(("resume", index, count))

    def _network_faults(self, state: State) -> Iterator[tuple[str, tuple, Callable[[State], State]]]:
        for mid in self.nets.values[state[NET]]:
            post = self.messages.values[mid]
            if isinstance(post[-1], Data):
                continue  # a pair loses nothing; it breaks
            yield "lose", (Mail(mid),), lambda state, mid=mid: self._after(state, (), mid, A, state[A])
            if post[0] != "condemn" and self._deliver(state, mid) is not None:
                yield "double", (Mail(mid),), lambda state, mid=mid: self._deliver(state, mid, keep=True)

    def _instance_faults(self, state: State, name: str, left: dict) -> Iterator[tuple[str, tuple, Callable]]:
        inst: Instance = self.instances.values[state[SIDE[name]]]
        if inst.dead:
            yield "boot", (name,), lambda state: self._revive(state, name)
            return
        if name in self.scenario.crashing:
            yield "crash", (name,), lambda state: self._kill(state, name, None)
        if name in self.scenario.hanging and not inst.hung:
            yield "hang", (name,), lambda state: self._set(state, name, replace(inst, hung=True))
        if inst.seat.may_preempt and not inst.hung:
            yield "preempt", (name,), self._telling(name, ("preempt",))
        if inst.hung:
            yield "wake", (name,), lambda state: self._set(state, name, replace(inst, hung=False))
            for writing in inst.writes:
                if writing.one_sided and writing.landed < writing.stage.count:
                    yield (
                        "early",
                        (name, "writes though hung"),
                        lambda s, w=writing: self._land(s, name, _other(name), w),
                    )
        elif inst.seat.holding is not None and "grace" in self.scenario.early:
            yield "early", (name, "hears no router"), self._telling(name, ("router_silent",))

    def _set(self, state: State, name: str, inst: Instance) -> State:
        return self._after(state, (), None, SIDE[name], self.instances.id(inst))

    def _kill(self, state: State, name: str, minus: int | None) -> State:
        inst: Instance = self.instances.values[state[SIDE[name]]]
        dead = replace(born(name, inst.life, self.scenario.shape), dead=True)
        return self._after(state, (), minus, SIDE[name], self.instances.id(dead))

    def _revive(self, state: State, name: str) -> State:
        inst: Instance = self.instances.values[state[SIDE[name]]]
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


def _other(name: str) -> str:
    return "B" if name == "A" else "A"


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
