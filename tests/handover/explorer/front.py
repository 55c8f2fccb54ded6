"""The routers of the explored world and its one client, which resumes at a router when its own has died.

A value each; `Desk.react` feeds the shipped `Session` and gives the next front and the messages to instances.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.handover import rules
from penstock.handover.effects import (
    Cancel,
    Closed,
    Deliver,
    Dispatched,
    FromInstance,
    InstanceLost,
    MoveAsked,
    MoveEnded,
    NeedDestination,
    NeedDispatch,
    Nudge,
    Silent,
    Tell,
)
from penstock.handover.session import Session
from penstock.handover.values import Address, Context, Epoch, Incarnation, MoveMode, Revoke

from .breach import require
from .instance import SESSION, Shape
from .tokens import Tokens

HIGHEST_N = 14
"""No finite number of faults takes a session further."""


@dataclass(frozen=True, slots=True)
class Router:
    """`output` is what the session told its client, with what the client had before."""

    session: Session | None = None
    output: tuple[int, ...] = ()
    dispatch_due: bool = False
    destination_due: bool = False
    dead: bool = False
    failed: frozenset[int] = frozenset()
    """The n of moves of which it was told that they came to nothing."""


@dataclass(frozen=True, slots=True)
class Front:
    """`client` is `waits`, `cut` (its stream broke), `whole` (all tokens), `told` (of the end), or `gone`."""

    routers: tuple[Router, ...]
    client: str = "waits"
    at: int = 0
    """The router of the client's stream."""
    attempt: int = 0
    had: int = 0
    """Tokens that the client had when it made this attempt."""

    @property
    def settled(self) -> bool:
        return self.client != "waits" and all(
            r.session is None or r.session.closed or r.dead for r in self.routers
        )

    def put(self, index: int, router: Router) -> Front:
        routers = list(self.routers)
        routers[index] = router
        return replace(self, routers=tuple(routers))


def opened(routers: int) -> Front:
    first = Router(Session(SESSION, 0), dispatch_due=True)
    return Front((first, *(Router() for _ in range(routers - 1))))


class Desk:
    """Feeds the routers' sessions and carries out their effects."""

    def __init__(self, shape: Shape, tokens: Tokens, prompt: tuple[int, ...]) -> None:
        self.shape = shape
        self.tokens = tokens
        self.prompt = prompt

    def react(self, front: Front, event: tuple) -> tuple[Front, tuple]:
        """Next front, and what leaves it: (instance, router, (incarnation, message)) triples."""
        run = _Run(self, front)
        getattr(run, "on_" + event[0])(*event[1:])
        return run.front, tuple(run.posts)


class _Run:
    def __init__(self, desk: Desk, front: Front) -> None:
        self.desk = desk
        self.front = front
        self.posts: list[tuple] = []

    def _feed(self, index: int, event, context: Context | None = None) -> None:
        router = self.front.routers[index]
        assert router.session is not None and not router.dead
        before = router.session
        session, effects = before.on(event, context)
        require(session.epoch >= before.epoch, "the router's epoch fell")
        require(session.n <= session.allotted, "an epoch is current that was never allotted")
        failed = self._failed(router.failed, before, session, effects)
        self.front = self.front.put(index, replace(router, session=session, failed=failed))
        for effect in effects:
            getattr(self, "_" + type(effect).__name__.lower())(index, effect)

    @staticmethod
    def _failed(failed: frozenset[int], before: Session, session: Session, effects: list) -> frozenset[int]:
        """With the move whose end was told now; those that the current epoch is above cannot come about any more."""
        require(
            session.n not in failed or session.n == before.n, "a move was done that was told to have failed"
        )
        moving = before.pending
        for effect in effects:
            if isinstance(effect, MoveEnded) and moving is not None:
                require(effect.done is (session.n == moving.n), "what was told of a move is not true")
                failed |= frozenset() if effect.done else {moving.n}
            if isinstance(effect, NeedDestination) and moving is not None:
                failed |= {moving.n}
        return frozenset(n for n in failed if n > session.n)

    def on_hear(self, index: int, sender: Incarnation, message) -> None:
        if self.front.routers[index].session is None:
            bound = rules.bound(Epoch(message.epoch.attempt, 0), closed=True)
            self._tell(index, Tell(sender, Revoke(SESSION, bound)))
        else:
            self._feed(index, FromInstance(sender, message))

    def on_dispatch(self, index: int, prefill: Incarnation, decode: Incarnation | None) -> None:
        router = self.front.routers[index]
        self.front = self.front.put(index, replace(router, dispatch_due=False))
        event = Dispatched(Address(prefill, ""), None if decode is None else Address(decode, ""))
        self._feed(index, event, Context(self.desk.prompt, router.output))

    def on_move(self, index: int, destination: Incarnation, mode: MoveMode, first: bool) -> None:
        self.front = self.front.put(index, replace(self.front.routers[index], destination_due=False))
        self._feed(index, MoveAsked(Address(destination, ""), mode, first))

    def on_stay(self, index: int) -> None:
        """No other destination was found: the session stays where it is."""
        self.front = self.front.put(index, replace(self.front.routers[index], destination_due=False))

    def on_silent(self, index: int) -> None:
        self._feed(index, Silent())

    def on_nudge(self, index: int) -> None:
        self._feed(index, Nudge())

    def on_lost(self, index: int, instance: Incarnation) -> None:
        self._feed(index, InstanceLost(instance))

    def on_cancel(self, index: int) -> None:
        if self.front.at == index and self.front.client == "waits":
            self.front = replace(self.front, client="gone")
        self._feed(index, Cancel())

    def on_crash(self, index: int) -> None:
        if self.front.at == index and self.front.client == "waits":
            self.front = replace(self.front, client="cut")
        self.front = self.front.put(index, replace(self.front.routers[index], dead=True))

    def on_cut(self) -> None:
        """The client's stream breaks while its router lives on."""
        self.front = replace(self.front, client="cut")

    def on_restart(self, index: int) -> None:
        self.front = self.front.put(index, Router())

    def on_resume(self, index: int, count: int) -> None:
        """The client comes back with `count` tokens, perhaps to a router that still serves its last attempt."""
        attempt = self.front.attempt + 1
        output = self.front.routers[self.front.at].output[:count]
        if self.front.routers[index].session is not None:
            self._feed(index, Cancel())
        router = Router(Session(SESSION, attempt, next_index=count), output, dispatch_due=True)
        front = replace(self.front, client="waits", at=index, attempt=attempt, had=count)
        self.front = front.put(index, router)

    # ---- effects of a session

    def _tell(self, index: int, effect: Tell) -> None:
        self.posts.append((effect.instance.instance, f"r{index}", (effect.instance, effect.message)))

    def _deliver(self, index: int, effect: Deliver) -> None:
        router = self.front.routers[index]
        require(effect.first_index == len(router.output), "a token was told twice, or one was left out")
        output = router.output
        for record in effect.records:
            past = (*self.desk.prompt, *output)
            require(
                self.desk.tokens.past(record.id) == past,
                "a token came that was made after others than the client has",
            )
            output = (*output, record.id)
        require(len(output) <= self.desk.shape.output, "more tokens than were asked for")
        self.front = self.front.put(index, replace(router, output=output))

    def _needdispatch(self, index: int, effect: NeedDispatch) -> None:
        session = self.front.routers[index].session
        assert session is not None
        require(session.n < HIGHEST_N, "a session that never ends: its epochs go on and on")
        self.front = self.front.put(index, replace(self.front.routers[index], dispatch_due=True))

    def _needdestination(self, index: int, effect: NeedDestination) -> None:
        self.front = self.front.put(index, replace(self.front.routers[index], destination_due=True))

    def _moveended(self, index: int, effect: MoveEnded) -> None:
        pass

    def _closed(self, index: int, effect: Closed) -> None:
        router = replace(self.front.routers[index], dispatch_due=False, destination_due=False)
        self.front = self.front.put(index, router)
        if effect.end is not None:
            require(len(router.output) == self.desk.shape.output, "a session closed before its last token")
        if self.front.at == index and self.front.client == "waits":
            self.front = replace(self.front, client="told" if effect.end is None else "whole")
