"""The explored world: everything that may happen next in a state, and the laws that hold between its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from penstock.handover.session import Session
from penstock.handover.values import Incarnation, MoveMode

from .breach import Breach
from .front import Front, Router
from .instance import Data, Instance, Writing
from .mechanics import BUDGET, FIRST, FRONT, NET, Mail, Mechanics, State
from .scenario import BREAK, EARLY, KINDS, LOSSES, Scenario

Move = tuple[bool, tuple, State]
"""One step of the world: whether it is free (spends no fault and no choice), its label, and the state after it."""


class World(Mechanics):
    """States and what follows on each."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._offers: dict[int, tuple] = {}
        self._losses = [scenario.budget.get(kind, 0) for kind in KINDS]

    def moves(self, state: State) -> list[Move]:
        """Every step that the world may take from here; raises `Breach` where one breaks a law, with its label."""
        moves: list[Move] = []
        for steps in (self._deliveries, self._local_steps, self._copies, self._front_steps, self._deaths):
            for label, after in steps(state):
                moves.append((True, label, after))
        quiet, left = not moves, self.budgets.values[state[BUDGET]]
        if quiet and all(left[place] == self._losses[place] for place in LOSSES):
            self._needs_no_clock(state)
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

    def _needs_no_clock(self, state: State) -> None:
        """Where nothing was lost, and the end was told, nothing is left that only a timer would free."""
        if self.fronts.values[state[FRONT]].settled and not self.good(state):
            raise Breach("something is held after the end until a clock runs out, though nothing was lost")

    def _spending(self, moves: list[Move], state: State, kind: str, label: tuple, compute) -> None:
        budget = self._spend(state[BUDGET], kind)
        if budget is not None:
            moves.append((False, (kind, *label), compute((*state[:BUDGET], budget, *state[FIRST:]))))

    def _deliveries(self, state: State) -> Iterator[tuple[tuple, State]]:
        mids = self.nets.values[state[NET]]
        if self.scenario.ordered:
            mids = {self.stream(mid): mid for mid in reversed(mids)}.values()  # the first of each
        for mid in mids:
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
        for name, side in self.side.items():
            for kind, event, event_id in self._offered(state[side]):
                if kind == "go":
                    yield (name, *event), self._met(state, side, event_id)
            inst: Instance = self.instances.values[state[side]]
            if inst.draining and not inst.dead and not inst.hung and inst.free:
                yield (name, "ends, for it is drained"), self._kill(state, name, None)

    def _copies(self, state: State) -> Iterator[tuple[tuple, State]]:
        """Writes under way go on; those of a hung instance too, but nobody may rely on that (see `_choices`)."""
        for inst in self.all(state):
            if inst.writes and not inst.dead and not inst.hung:
                for writing in inst.writes:
                    yield from self._copy(state, inst, writing)

    def _copy(self, state: State, inst: Instance, writing: Writing) -> Iterator[tuple[tuple, State]]:
        name, there = inst.name, self.at(state, writing.stage.destination.instance)
        if writing.landed == writing.stage.count and (writing.one_sided or not writing.stage.count):
            yield (name, "written"), self._tell(state, name, ("written", writing, True))
        elif not writing.one_sided:
            yield (name, "hands to the pair"), self._tell(state, name, ("gather", writing))
        else:
            yield (name, "writes a block"), self._land(state, name, writing)
        apart = not writing.one_sided and (inst.apart or there.apart)
        if apart or there.dead or there.incarnation != writing.stage.destination:
            yield (name, "fails to write"), self._tell(state, name, ("written", writing, False))

    def _land(self, state: State, name: str, writing: Writing) -> State:
        inst, other = self.at(state, name), writing.stage.destination.instance
        there = self.at(state, other)
        label = (name, "writes a block")
        after = self._tell(state, name, ("copied", writing), label=label)
        if there.dead or there.incarnation != writing.stage.destination:
            return after
        ids = self._content(inst, writing, label)
        position = writing.stage.first + writing.landed
        block = dict(inst.targets)[writing.stage.lease][position]
        return self._tell(after, other, ("land", writing.stage, block, position, ids), label=label)

    def _content(self, inst: Instance, writing: Writing, label: tuple) -> tuple:
        seq = inst.find(writing.origin)
        assert seq is not None, label
        tag = inst.pool[seq.blocks[writing.stage.first + writing.landed]].tag
        assert tag is not None
        return tag[1]

    def _front_steps(self, state: State) -> Iterator[tuple[tuple, State]]:
        front: Front = self.fronts.values[state[FRONT]]
        live = [inst.incarnation for inst in self._alive(state) if inst.reachable and not inst.draining]
        for index, router in enumerate(front.routers):
            if router.dead or router.session is None:
                continue
            if not router.session.closed and (front.client == "cut" or front.at != index):
                yield (f"r{index}", "notices that its client has gone"), self._ask(state, ("cancel", index))
            if router.dispatch_due:
                for prefill, decode in self._assignments(live, router.session.attempt, router.session.n):
                    label = (f"r{index}", "dispatches to", prefill, decode)
                    yield label, self._ask(state, ("dispatch", index, prefill, decode))
            if self._must_leave(state, router):
                for inc in filter(self._decodes, live):
                    yield (
                        (f"r{index}", "drains to", inc),
                        self._ask(state, ("move", index, inc, self.scenario.mode, False)),
                    )
            if router.destination_due:
                owner = router.session.owner
                if owner is None or self._decodes(owner):
                    yield (f"r{index}", "lets it stay"), self._ask(state, ("stay", index))
                for inc in filter(self._decodes, live) if self.scenario.picks_anew else ():
                    yield (
                        (f"r{index}", "picks anew", inc),
                        self._ask(state, ("move", index, inc, MoveMode.LIVE, True)),
                    )

    def _must_leave(self, state: State, router: Router) -> bool:
        """The session runs where everything is to be moved away, and nothing else is to be done with it first."""
        session = router.session
        if session is None or session.closed or session.owner is None or session.pending is not None:
            return False
        owner = self.at(state, session.owner.instance)
        due = router.dispatch_due or router.destination_due
        return owner.draining and owner.incarnation == session.owner and owner.reachable and not due

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
        return [inst for inst in self.all(state) if not inst.dead]

    def _deaths(self, state: State) -> Iterator[tuple[tuple, State]]:
        """Whoever leans on a dead incarnation hears of its death."""
        insts = dict(zip(self.names, self.all(state), strict=True))
        if all(inst.life == 0 and not inst.dead for inst in insts.values()):
            return
        for name, inst in insts.items():
            if inst.dead or not inst.reachable:
                continue
            for peer in self._peers(inst):
                if self._is_dead(peer, insts):
                    after = self._tell(state, name, ("lost", peer))
                    if after[self.side[name]] != state[self.side[name]]:
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
        for name, side in self.side.items():
            inst: Instance = self.instances.values[state[side]]
            if inst.dead or inst.hung:
                continue
            for kind, event, _ in self._offered(state[side]):
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
            if holding is not None and (inst.apart or front.routers[int(holding.router[1:])].dead):
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
        holdings = (inst.seat.holding for inst in self._alive(state) if inst.reachable)
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
        for name in self.names:
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
            yield (
                "lose",
                (Mail(mid),),
                lambda state, mid=mid: self._after(state, (), mid, FRONT, state[FRONT]),
            )
            if post[0] != "condemn" and self._deliver(state, mid) is not None:
                yield "double", (Mail(mid),), lambda state, mid=mid: self._deliver(state, mid, keep=True)

    def _instance_faults(self, state: State, name: str, left: dict) -> Iterator[tuple[str, tuple, Callable]]:
        inst = self.at(state, name)
        if inst.dead:
            yield "boot", (name,), lambda state: self._revive(state, name)
            return
        if name in self.scenario.crashing:
            yield "crash", (name,), lambda state: self._kill(state, name, None)
        if name in self.scenario.hanging and not inst.hung:
            yield "hang", (name,), lambda state: self._set(state, name, replace(inst, hung=True))
        if name in self.scenario.draining and not inst.draining:
            yield "drain", (name,), lambda state: self._set(state, name, replace(inst, draining=True))
        if inst.apart:
            yield "heal", (name,), lambda state: self._set(state, name, replace(inst, apart=False))
        elif name in self.scenario.parting:
            yield "part", (name,), lambda state: self._set(state, name, replace(inst, apart=True))
        if inst.seat.may_preempt and not inst.hung:
            yield "preempt", (name,), self._telling(name, ("preempt",))
        if inst.hung:
            yield "wake", (name,), lambda state: self._set(state, name, replace(inst, hung=False))
            for writing in inst.writes:
                if writing.one_sided and writing.landed < writing.stage.count:
                    yield (
                        "early",
                        (name, "writes though hung"),
                        lambda s, w=writing: self._land(s, name, w),
                    )
        elif inst.seat.holding is not None and "grace" in self.scenario.early:
            yield "early", (name, "hears no router"), self._telling(name, ("router_silent",))
