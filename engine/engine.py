"""The engine thread of one instance: it alone touches sequences, blocks and seats.

Each round takes what has arrived, lets timers fire, runs one step, and says what came of it. With overlap it launches
one step, and then says what came of the one before.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from ..handover.effects import (
    Beat,
    Begin,
    Clock,
    Condemn,
    Drop,
    FromPeer,
    FromRouter,
    InstanceEffect,
    InstanceEvent,
    Launched,
    Pause,
    Preempted,
    Receive,
    Stepped,
    Timeout,
    Timer,
    ToRouter,
    Unpause,
    Written,
)
from ..handover.house import House
from ..handover.seat import Seat
from ..handover.values import (
    Address,
    Epoch,
    Grant,
    LeaseKey,
    Move,
    News,
    Seen,
    Stage,
    Start,
    TokenRecord,
    Window,
)
from ..policy.batching import Budget
from ..policy.journal import Journal
from ..policy.state import LoadView
from .chronicle import Chronicle
from .launch import Landing, Launch
from .moving import Moving
from .outbox import Outbox
from .outside import Limits, Outside
from .scheduler import Scheduler
from .sequence import Sequence as Running
from .step import StepItem
from .timers import Timers

logger = logging.getLogger(__name__)

COMMIT_WAIT_S = 0.005
"""Most that a step is put off for the final stage of a sequence that leaves."""
HEARS_AFTER_S = 0.01
"""A step that takes longer does not keep waiting what arrives: so often it is heard until the step has ended."""


class Model(Protocol):
    """What runs steps; see `Runner.launch`."""

    def launch(self, items: Sequence[StepItem], after: Any, meanwhile: Callable[[], None]) -> Landing:
        """Begin a step, behind the step whose landing is `after`, or None; call `meanwhile` while that takes time."""
        ...


@dataclass(frozen=True, slots=True)
class Swapped:
    """A copy to or from host memory has ended; `ok` where all of it is there."""

    number: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Assigned:
    """The role from now on, and whether the instance is to be emptied."""

    role: Budget
    drain: bool


@dataclass(frozen=True, slots=True)
class Everyone:
    """An event for all seats that hold something and for which `wanted` holds."""

    event: InstanceEvent
    wanted: Callable[[Seat], bool]


Item = tuple[str, InstanceEvent] | Everyone | Assigned | Swapped | None


class Engine:
    """Runs in a thread of its own between `start` and `stop`; other threads only `post`."""

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        house: House,
        limits: Limits,
        outside: Outside,
        window: Window | None,
        journal: Journal | None = None,
        overlap: bool = False,
        nice: int = 0,
        hears_after_s: float = HEARS_AFTER_S,
    ):
        """`journal` keeps what was done with each sequence, and when; None is one that nobody reads.

        With `overlap` a step is launched before the results of the one before it are taken. A sequence that is then
        found to have ended has run one step too many, whose token nobody sees and before whose end nothing is freed.
        Not where a sliding window passes over blocks: they are given away with the launch of the step that passes them,
        and the one before it may still read them.

        `nice` is the thread's place among the threads of its machine: a higher one gives way to lower ones. A step that
        has run for `hears_after_s` hears what has arrived, where its model lets it.
        """
        self._nice = nice
        self._hears_after_s = hears_after_s
        self._heard_at = 0.0
        self._stale = False
        """Something happened that `load` does not know."""
        self._overlap = overlap and scheduler.pool.span is None
        self._model = model
        self._scheduler = scheduler
        self._house = house
        self._limits = limits
        self._outside = outside
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._seats: dict[str, Seat] = {}
        """Seats that hold something; what a round costs follows from their number."""
        self._marks: dict[str, tuple[float, Seat]] = {}
        """Seats that hold nothing but their mark, and since when, the oldest first."""
        self._flights: deque[Launch] = deque()
        """Steps that were launched and have not landed, the oldest first."""
        self._landed_at = 0.0
        self._untold: dict[str, int] = {}
        """Sessions whose seats have not heard of so many steps in flight: that is told before anything else."""
        self._seen: dict[str, FromRouter] = {}
        """What routers have seen, as far as it is not told: it lets records go, and waits for the next event."""
        self._outbox = Outbox()
        self._chronicle = Chronicle(journal or Journal(house.me.instance, time.monotonic))
        self._moving = Moving(scheduler, house, limits, outside, window, self._outbox, self._chronicle)
        self._timers = Timers(house.config)
        self._next_beat = 0.0
        self._steps = 0
        self._step_s = 0.0
        self._outlook = asdict(scheduler.outlook())
        """As of the last heartbeat."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self.failure: BaseException | None = None
        """What ended the thread, if it was not `stop`."""
        self.load = self._measure()
        """The latest load view; replaced, never changed."""
        self.alive_at = time.monotonic()
        """When the thread last finished a round."""
        self.stepping = False
        """Whether there was a step to run in the latest round."""
        self._told = self._seats
        """The seats as the latest flush left them; replaced, never changed."""

    # ---- from other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after the step that runs."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join(timeout_s)

    def post(self, session: str, event: InstanceEvent) -> None:
        self._inbox.put((session, event))

    def post_all(self, event: InstanceEvent, wanted: Callable[[Seat], bool] = lambda seat: True) -> None:
        """Post an event to every seat that holds something and for which `wanted` holds."""
        self._inbox.put(Everyone(event, wanted))

    def assign(self, role: Budget, drain: bool) -> None:
        """Take this role between two steps.

        Where it is to `drain` nothing more begins here and nothing arrives; what has begun goes on until it is moved
        away. A role without decode slots is for an instance that has nothing which decodes.
        """
        self._inbox.put(Assigned(role, drain))

    def post_swapped(self, number: int, ok: bool) -> None:
        """A copy that `Outside.swap` was asked for has ended."""
        self._inbox.put(Swapped(number, ok))

    @property
    def backlog(self) -> int:
        """Events that wait for the step to end; whoever posts holds back while they are many."""
        return self._inbox.qsize()

    @property
    def sessions(self) -> list[tuple[str, News]]:
        """(router, news without records) of each session owned here."""
        owned = [(key, seat.holding) for key, seat in self._told.items() if seat.holding is not None]
        return [
            (holding.router, News(key, holding.epoch, holding.told, waits=not holding.begun))
            for key, holding in owned
        ]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # ---- a round

    def _run(self) -> None:
        if self._nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        try:
            while not self._stopping:
                self.round()
        except Exception as error:  # noqa: BLE001 - the thread ends here; the server ends the instance
            self.failure = error
            logger.exception("the engine failed")

    def round(self, wait: bool = True) -> None:
        """One step, and all that has arrived; where nothing is to run, `wait` for what arrives or falls due."""
        self.stepping = bool(self._flights)
        batch = self._next_batch()
        for sequence in self._scheduler.take_preempted():
            self._chronicle.preempted(sequence)
            self._feed(sequence.session, Preempted())
        self._begin_swaps()
        if batch:
            self._launch(batch)
            self.stepping = True
        if self.stepping:
            self._land_all_but(self._ahead() if batch else 0)
            self._flush()
        self._take_inbox(wait and not self.stepping)
        if wait:
            self._await_commits()
        self._fire_timers()
        self._retry_leases()
        if time.monotonic() >= self._next_beat:
            self._beat()
        self._begin_swaps()
        if self._outbox or self._stale or not self.stepping:
            self._flush()
        self.alive_at = time.monotonic()

    def _next_batch(self) -> list[tuple[Running, int]]:
        """What the next step runs. Where others must make room for it, the steps in flight land first: until then
        nobody's memory is given away, nor copied to the host."""
        batch = self._scheduler.next_batch(preempts=not self._flights)
        if self._scheduler.cramped:
            self._land_all_but(0)
            batch = self._scheduler.next_batch()
        return batch

    def _launch(self, batch: list[tuple[Running, int]]) -> None:
        """Begin a step, behind the one in flight."""
        before = self._flights[-1] if self._flights else None
        places = before.places if before else {}
        items = [
            self._scheduler.item(sequence, tokens, places[sequence.session] if sequence.owed else None)
            for sequence, tokens in batch
        ]
        for (sequence, tokens), item in zip(batch, items, strict=True):
            self._scheduler.ran(sequence, tokens)
            sequence.owed += item.sample is not None
            sequence.locked = True
            self._put_launch_off(sequence.session)
        began = self._heard_at = time.perf_counter()
        flight = self._model.launch(items, before and before.flight, self._hear_meanwhile)
        sequences = [sequence for sequence, _ in batch]
        self._flights.append(Launch(sequences, items, flight, began))
        for sequence in sequences:
            self._scheduler.keep(sequence)

    def _hear_meanwhile(self) -> None:
        """Take what has arrived while a step runs, which touches nothing that the step does: it counts as launched."""
        now = time.perf_counter()
        if now - self._heard_at >= self._hears_after_s and not self._inbox.empty():
            self._heard_at = now
            self._take_inbox(wait=False)
            self._flush()

    def _put_launch_off(self, session: str) -> None:
        """Its seat hears of the launch with whatever happens next; of the first, with which it begins, at once."""
        seat = self._seats[session]
        if seat.holding is not None and not seat.holding.begun:
            self._feed(session, Launched())
        else:
            self._untold[session] = self._untold.get(session, 0) + 1

    def _ahead(self) -> int:
        """How many steps may stay in flight while the next is formed: one, or none where it looks at what they draw.

        That is so for the whole batch as soon as one sequence of it has a grammar or penalties: its mask and its tally
        are made on the host. Whoever has none waits with it, rather than run at another pace than its neighbours.
        """
        return int(self._overlap and bool(self._flights) and not self._flights[-1].looked_at)

    def _land_all_but(self, count: int) -> None:
        while len(self._flights) > count:
            self._land(self._flights.popleft())

    def _land(self, launch: Launch) -> None:
        """Take what a step made."""
        drawn = launch.flight.result()
        now = time.perf_counter()
        took, self._landed_at = now - max(launch.began, self._landed_at), now
        self._step_s += (took - self._step_s) / min(self._steps + 1, 16)
        self._steps += 1
        for sequence, item, token in zip(launch.sequences, launch.items, drawn, strict=True):
            if item.start < sequence.prefill_until:
                self._chronicle.chunk(sequence, item.start, len(item.tokens), len(drawn), took)
            self._collect(sequence, item, token)

    def _collect(self, sequence: Running, item: StepItem, token: int | None) -> None:
        """What a step made of a sequence: nothing that counts, where it ended in the step before."""
        session, records = sequence.session, ()
        sequence.owed -= token is not None
        if not sequence.ended:
            if item.log is not None:
                sequence.log(item.start, item.log)
            if token is not None:
                records = (sequence.append(token, item.log and item.log.of_drawn),)
        step, seat = self._stepped(sequence, item, records), self._seats[session]
        if records and sequence.ended:
            self._scheduler.ended(sequence)
        elif seat.plain:
            if not seat.launched:
                self._tell_launch(session)
            seat, effects = seat.ran(step)
            self._seats[session] = seat
            sequence.locked = bool(seat.launched) or session in self._untold
            for effect in effects:
                self._do(session, effect)
            return
        self._feed(session, step)

    def _tell_launch(self, session: str) -> None:
        """One launch fewer that its seat has not heard of."""
        self._untold[session] -= 1
        if not self._untold[session]:
            del self._untold[session]

    def _stepped(self, sequence: Running, item: StepItem, records: tuple[TokenRecord, ...]) -> Stepped:
        end = item.start + len(item.tokens)
        full, blocks = end // self._limits.block_size, self._limits.blocks(end)
        passed = self._scheduler.kv.passed(len(sequence.tokens))
        return Stepped(records, full, blocks, end, end >= sequence.prefill_until, passed)

    def _take_inbox(self, wait: bool) -> None:
        due = self._timers.next_due(self._next_beat)
        timeout = max(0.0, due - time.monotonic()) if wait else 0.0
        try:
            item = self._inbox.get(timeout=timeout) if timeout else self._inbox.get_nowait()
            while True:
                self._take(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass

    def _await_commits(self) -> None:
        """A commit's last blocks are few: their header leaves before the next step begins, not after it has ended."""
        deadline = time.monotonic() + COMMIT_WAIT_S
        committing = self._moving.committing
        while committing and (left_s := deadline - time.monotonic()) > 0:
            try:
                self._take(self._inbox.get(timeout=left_s))
            except queue.Empty:
                break
        committing.clear()  # a slow one is waited for once, not before every step

    def _take(self, item: Item) -> None:
        if isinstance(item, Everyone):
            self._feed_all(item.event, item.wanted)
        elif isinstance(item, Assigned):
            self._scheduler.role, self._scheduler.closed = item.role, item.drain
            self._house = replace(self._house, draining=item.drain)
            self._feed_all(Beat())
        elif isinstance(item, Swapped):
            self._scheduler.swapped(item.number, item.ok)
        elif item is not None:
            session, event = item
            match event:
                case FromRouter(_, Seen()) if self._puts_off(session):
                    self._seen[session] = event
                    return
                case FromRouter(router, Start() as start) if reason := self._limits.unfit(start.context):
                    self._refuse(router, start, reason)
                    return
                case FromRouter(_, Start(destination=Address() as destination)):
                    self._consider(destination)
                case FromRouter(_, Move(destination=destination)):
                    self._consider(destination)
                case FromPeer(_, Grant() as grant) if grant.source == self._house.me:
                    self._moving.granted(grant)
                    self._end_if_outgrown(session, grant.lease)
                case Written(lease):
                    self._moving.committing.discard(lease)
            effects = self._feed(session, event)
            if isinstance(event, FromPeer) and isinstance(event.message, Stage) and event.message.pair:
                if not any(isinstance(effect, Receive) for effect in effects):
                    self._outside.decline_blocks(event.message)

    def _refuse(self, router: str, start: Start, reason: str) -> None:
        """It would end this thread, and every other sequence with it."""
        logger.warning("%s is refused: %s", start.session, reason)
        made = len(start.context.emitted)
        self._outbox.to_router(router, News(start.session, start.epoch, made, refused=reason))

    def _end_if_outgrown(self, session: str, lease: LeaseKey) -> None:
        """What was granted may be less by now than the sequence has: another reservation must ask for more."""
        seat = self._seats.get(session)
        sequence = seat and seat.holding and self._scheduler.get(session, seat.holding.epoch)
        room = self._moving.room(lease)
        if sequence and room is not None and sequence.computed > room:
            self._feed(session, Timeout(Clock.RESERVE, lease))

    def _consider(self, destination: Address) -> None:
        """Choose the transport to a destination before its handover is planned."""
        name, reaches = destination.incarnation.instance, self._house.reaches
        reached = reaches | {name} if self._outside.reaches(destination) else reaches - {name}
        if reached != reaches:
            self._house = replace(self._house, reaches=reached)

    def _puts_off(self, session: str) -> bool:
        """Whether what the router has seen may wait until something else happens: a few records wait with it."""
        seat = self._seats.get(session)
        return seat is not None and seat.plain

    def _feed(self, session: str, event: InstanceEvent) -> list[InstanceEffect]:
        """Tell the session's seat, and carry out what it says."""
        for _ in range(self._untold.pop(session, 0)):
            self._hear(session, Launched())
        seen = self._seen.pop(session, None)
        if seen is not None:
            self._hear(session, seen)
        return self._hear(session, event)

    def _hear(self, session: str, event: InstanceEvent) -> list[InstanceEffect]:
        self._stale = True
        was = self._seats.get(session) or self._remembered(session)
        seat, effects = was.on(event, self._house)
        self._seats[session] = seat
        if effects:
            for effect in effects:
                self._do(session, effect)
            seat = self._seats.get(session)  # carrying out an effect may have brought the next event
            if seat is None:
                return effects
        if seat.empty:
            del self._seats[session]
            self._marks[session] = time.monotonic(), seat
        elif not _same_to_scheduler(was, seat):
            self._note(session, seat)
        return effects

    def _remembered(self, session: str) -> Seat:
        _, marked = self._marks.pop(session, (0.0, None))
        return marked or Seat(session)

    def _feed_all(self, event: InstanceEvent, wanted: Callable[[Seat], bool] = lambda seat: True) -> None:
        for session in [key for key, seat in self._seats.items() if wanted(seat)]:
            self._feed(session, event)

    def _note(self, session: str, seat: Seat) -> None:
        """Tell the scheduler what the protocol allows with the session's sequences."""
        for epoch in seat.doomed:
            doomed = self._scheduler[LeaseKey(session, epoch)]
            doomed.paused = True  # nobody owns it: it only waits to be freed
        for source in seat.sources:
            if not source.active:
                self._outside.give_up(source.lease)
        sequence = seat.holding and self._scheduler.get(session, seat.holding.epoch)
        if sequence:
            source = seat.source
            sequence.locked, sequence.copying = not seat.may_preempt, source is not None
            sequence.kept_from = seat.kept_from
            sequence.limit = self._moving.room(source.lease) if source and source.granted else None

    # ---- effects

    def _do(self, session: str, effect: InstanceEffect) -> None:
        match effect:
            case ToRouter(router, message):
                self._outbox.to_router(router, message)
            case Begin(start):
                limits, context = self._limits, start.context
                model = (limits.context, limits.ends, limits.constraint(context))
                sequence = Running.begin(session, start.epoch, context, *model)
                self._scheduler.add(sequence)
                self._chronicle.queued(sequence)
            case Drop(epoch):
                key = LeaseKey(session, epoch)
                self._chronicle.gone(self._scheduler[key])
                self._scheduler.remove(key, time.monotonic())
            case Pause(epoch):
                self._pause(self._scheduler[LeaseKey(session, epoch)])
            case Unpause(was, epoch):
                self._unpause(self._scheduler[LeaseKey(session, was)], epoch)
            case Timer(clock, lease):
                self._timers.start(clock, lease, time.monotonic())
            case Condemn(writer):
                self._outside.condemn(writer)
            case _:
                answer = self._moving.carry_out(session, effect)
                if answer is not None:
                    self._feed(session, answer)

    def _pause(self, sequence: Running) -> None:
        sequence.paused = True
        self._chronicle.paused(sequence)

    def _unpause(self, sequence: Running, epoch: Epoch) -> None:
        sequence.paused = False
        if sequence.epoch != epoch:
            was = sequence.key
            self._scheduler.rename(sequence, epoch)
            self._chronicle.renamed(was, sequence)
        self._chronicle.resumed(sequence)

    # ---- time

    def _fire_timers(self) -> None:
        for clock, lease in self._timers.fired(time.monotonic()):
            self._feed(lease.session, Timeout(clock, lease))

    def _retry_leases(self) -> None:
        for leased in self._moving.retried():
            self._feed(leased.lease.session, leased)

    def _beat(self) -> None:
        now = time.monotonic()
        self._next_beat = now + self._house.config.heartbeat_s
        self._feed_all(Beat())
        self._outlook = asdict(self._scheduler.outlook())
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Marks are kept for the grace time."""
        while self._marks:
            session, (since, _) = next(iter(self._marks.items()))
            if now - since <= self._house.config.grace_s:
                break
            del self._marks[session]
        self._moving.forget(lambda session: session in self._seats and bool(self._seats[session].sources))

    # ---- what is said

    def _flush(self) -> None:
        self.load = self._measure()
        self._told, self._stale = self._seats.copy(), False
        if self._outbox:
            self._outside.send(*self._outbox.take(self.load))

    def _begin_swaps(self) -> None:
        for swap in self._scheduler.kv.take_swaps():
            self._outside.swap(swap)

    def _measure(self) -> LoadView:
        scheduler = self._scheduler
        scheduler.pool.expire(time.monotonic())
        counts, queue = scheduler.pool.counts(), scheduler.queue()
        return LoadView(
            total_blocks=counts.total,
            free_blocks=counts.free,
            cached_blocks=counts.cached - counts.pinned,
            held_blocks=counts.held + counts.pinned,
            leased_blocks=counts.leased,
            quarantined_blocks=counts.quarantined,
            waiting=queue.waiting,
            running=queue.running,
            queued_tokens=queue.tokens,
            prefill_tokens=scheduler.role.prefill_tokens,
            decode_slots=scheduler.role.decode_slots,
            block_size=self._limits.block_size,
            steps=self._steps,
            step_s=self._step_s,
            asked_tokens=scheduler.kv.asked_tokens,
            hit_tokens=scheduler.kv.hit_tokens,
            preemptions=scheduler.preemptions,
            swapped_blocks=scheduler.kv.swapped_blocks,
            written_blocks=self._moving.written_blocks,
            sent_blocks=self._moving.sent_blocks,
            most_blocks=0 if scheduler.pool.span is None else scheduler.pool.span + 1,
            draining=self._house.draining,
            sessions=len(self._seats),
            **self._outlook,
        )


def _same_to_scheduler(was: Seat, now: Seat) -> bool:
    """Whether `_note` has nothing new to tell."""
    if was.launched != now.launched or was.sources is not now.sources or was.doomed is not now.doomed:
        return False
    held, holds = was.holding, now.holding
    return (held and (held.epoch, held.ended)) == (holds and (holds.epoch, holds.ended))
