"""The engine thread of one instance: it alone touches sequences, blocks and seats.

Each round takes what has arrived, lets timers fire, runs one step, and says what came of it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..handover.effects import (
    Adopt,
    Beat,
    Begin,
    Clock,
    CloseReceive,
    Condemn,
    Drop,
    FromPeer,
    FromRouter,
    InstanceEffect,
    InstanceEvent,
    Launched,
    Lease,
    Leased,
    Pause,
    Preempted,
    Quarantine,
    Receive,
    Release,
    Reserving,
    Stepped,
    Timeout,
    Timer,
    ToPeer,
    ToRouter,
    Unpause,
    Write,
    Written,
)
from ..handover.frames import InstanceFrame, Step
from ..handover.house import House
from ..handover.seat import Seat
from ..handover.values import (
    Address,
    Ask,
    Epoch,
    Grant,
    Incarnation,
    LeaseKey,
    Move,
    News,
    PeerMessage,
    Reserve,
    Stage,
    Start,
    Unmoved,
    Window,
)
from ..policy.state import LoadView, blocks_for
from .grammar import Grammars
from .host_tier import Swap
from .phase import Size
from .scheduler import Scheduler
from .sequence import Sequence as Running
from .step import StepItem

logger = logging.getLogger(__name__)

MOVING_ROOM = 128
MOVING_SHARE = 0.25
"""A sequence may grow by so many tokens, and this share of those that it has, while it is copied; then it waits."""
COMMIT_WAIT_S = 0.005
"""Most that a step is put off for the final stage of a sequence that leaves."""


class Model(Protocol):
    """What runs a step; see `Runner.step`."""

    def step(self, items: Sequence[StepItem]) -> list[int | None]: ...


class Outside(Protocol):
    """What the engine asks of the threads around it. Every call returns at once."""

    def send(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        """Send these, in order."""
        ...

    def condemn(self, writer: Incarnation) -> None: ...

    def write_in_place(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        urgent: bool,
    ) -> None:
        """Copy blocks into a peer's memory (None: it shares none); `Written` is posted when that has ended.

        `urgent` where a paused sequence waits for it; else it takes its time, so that steps do not feel it.
        """
        ...

    def send_blocks(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        """Send the header and the blocks; `Written` is posted when that has ended."""
        ...

    def receive_blocks(self, stage: Stage, ids: Sequence[int]) -> None:
        """Take the blocks that follow a header; `Received` is posted when that has ended."""
        ...

    def decline_blocks(self, stage: Stage) -> None:
        """Nobody wants the blocks that follow this header."""
        ...

    def close_receive(self, lease: LeaseKey) -> None: ...

    def swap(self, swap: Swap) -> None:
        """Copy blocks between the cache and host memory; `Swapped` is posted when that has ended."""
        ...

    def reaches(self, destination: Address) -> bool:
        """Whether the destination's memory may be written in place."""
        ...


@dataclass(frozen=True, slots=True)
class Swapped:
    """A copy to or from host memory has ended; `ok` where all of it is there."""

    number: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Everyone:
    """An event for all seats that hold something and for which `wanted` holds."""

    event: InstanceEvent
    wanted: Callable[[Seat], bool]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and its cache allow."""

    context: int
    """Tokens, prompt and output together."""
    ends: frozenset[int]
    block_size: int
    grammars: Grammars | None = None
    """None where the model has no tokenizer."""


@dataclass(frozen=True, slots=True)
class _Coming:
    """A reservation, and the names of the blocks that its context fills."""

    reserve: Reserve
    names: list[bytes]


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
    ):
        self._model = model
        self._scheduler = scheduler
        self._house = house
        self._limits = limits
        self._outside = outside
        self._window = window
        self._inbox: queue.SimpleQueue[tuple[str, InstanceEvent] | Everyone | Swapped | None] = (
            queue.SimpleQueue()
        )
        self._seats: dict[str, Seat] = {}
        """Seats that hold something; what a round costs follows from their number."""
        self._marks: dict[str, tuple[float, Seat]] = {}
        """Seats that hold nothing but their mark, and since when, the oldest first."""
        self._coming: dict[LeaseKey, _Coming] = {}
        self._grants: dict[LeaseKey, Grant] = {}
        self._rooms: dict[LeaseKey, int] = {}
        """Tokens of KV that a reservation of ours asked room for."""
        self._waiting: list[LeaseKey] = []
        self._committing: set[LeaseKey] = set()
        """Final stages that are being written in place."""
        self._timers: list[tuple[float, int, Clock, LeaseKey]] = []
        self._timer_ids: dict[tuple[Clock, LeaseKey], int] = {}
        self._count = itertools.count()
        self._news: defaultdict[str, list[News]] = defaultdict(list)
        self._to_routers: list[tuple[str, InstanceFrame]] = []
        self._to_peers: list[tuple[Incarnation, PeerMessage]] = []
        self._next_beat = 0.0
        self._steps = 0
        self._written_blocks = self._sent_blocks = 0
        self._step_s = 0.0
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
        self.sessions: tuple[tuple[str, News], ...] = ()
        """(router, news without records) of each session owned here; replaced, never changed."""

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

    def post_swapped(self, number: int, ok: bool) -> None:
        """A copy that `Outside.swap` was asked for has ended."""
        self._inbox.put(Swapped(number, ok))

    @property
    def backlog(self) -> int:
        """Events that wait for the step to end; whoever posts holds back while they are many."""
        return self._inbox.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # ---- a round

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.round()
        except Exception as error:  # noqa: BLE001 - the thread ends here; the server ends the instance
            self.failure = error
            logger.exception("the engine failed")

    def round(self, wait: bool = True) -> None:
        """One step, and all that has arrived; where nothing is to run, `wait` for what arrives or falls due."""
        batch = self._scheduler.next_batch()
        for sequence in self._scheduler.take_preempted():
            self._feed(sequence.session, Preempted())
        self._begin_swaps()
        self.stepping = bool(batch)
        if batch:
            self._step(batch)
            self._flush()
        self._take_inbox(wait and not batch)
        if wait:
            self._await_commits()
        self._fire_timers()
        self._retry_leases()
        if time.monotonic() >= self._next_beat:
            self._beat()
        self._flush()

    def _step(self, batch: list[tuple[Running, int]]) -> None:
        items = [self._scheduler.item(sequence, tokens) for sequence, tokens in batch]
        for sequence, _ in batch:
            self._feed(sequence.session, Launched())
        began = time.perf_counter()
        drawn = self._model.step(items)
        took = time.perf_counter() - began
        self._step_s += (took - self._step_s) / min(self._steps + 1, 16)
        self._steps += 1
        for (sequence, tokens), item, token in zip(batch, items, drawn, strict=True):
            sequence.log(item.start, item.log)
            self._scheduler.ran(sequence, tokens)
            records = () if token is None else (sequence.append(token, item.log and item.log.of_drawn),)
            if records and records[-1].end is not None:
                self._scheduler.ended(sequence)
            self._feed(sequence.session, self._stepped(sequence, records))

    def _stepped(self, sequence: Running, records: tuple) -> Stepped:
        full, blocks = sequence.computed // self._limits.block_size, self._blocks(sequence.computed)
        return Stepped(records, full, blocks, sequence.computed, sequence.decoding)

    def _take_inbox(self, wait: bool) -> None:
        timeout = max(0.0, self._next_due() - time.monotonic()) if wait else 0.0
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
        while self._committing and (left_s := deadline - time.monotonic()) > 0:
            try:
                self._take(self._inbox.get(timeout=left_s))
            except queue.Empty:
                break
        self._committing.clear()  # a slow one is waited for once, not before every step

    def _take(self, item: tuple[str, InstanceEvent] | Everyone | Swapped | None) -> None:
        if isinstance(item, Everyone):
            for session in [key for key, seat in self._seats.items() if item.wanted(seat)]:
                self._feed(session, item.event)
        elif isinstance(item, Swapped):
            self._scheduler.swapped(item.number, item.ok)
        elif item is not None:
            session, event = item
            match event:
                case FromRouter(_, Start(destination=Address() as destination)):
                    self._consider(destination)
                case FromRouter(_, Move(destination=destination)):
                    self._consider(destination)
                case FromPeer(_, Grant() as grant) if grant.source == self._house.me:
                    self._grants[grant.lease] = grant
                    self._end_if_outgrown(session, grant.lease)
                case Written(lease):
                    self._committing.discard(lease)
            effects = self._feed(session, event)
            if isinstance(event, FromPeer) and isinstance(event.message, Stage) and event.message.pair:
                if not any(isinstance(effect, Receive) for effect in effects):
                    self._outside.decline_blocks(event.message)

    def _end_if_outgrown(self, session: str, lease: LeaseKey) -> None:
        """What was granted may be less by now than the sequence has: another reservation must ask for more."""
        seat = self._seats.get(session)
        sequence = seat and seat.holding and self._scheduler.get(session, seat.holding.epoch)
        if sequence and sequence.computed > self._rooms.get(lease, sequence.computed):
            self._feed(session, Timeout(Clock.RESERVE, lease))

    def _consider(self, destination: Address) -> None:
        """Choose the transport to a destination before its handover is planned."""
        name, reaches = destination.incarnation.instance, self._house.reaches
        reached = reaches | {name} if self._outside.reaches(destination) else reaches - {name}
        if reached != reaches:
            self._house = replace(self._house, reaches=reached)

    def _feed(self, session: str, event: InstanceEvent) -> list[InstanceEffect]:
        _, marked = self._marks.pop(session, (0.0, None))
        seat = self._seats.get(session) or marked or Seat(session)
        self._seats[session], effects = seat.on(event, self._house)
        for effect in effects:
            self._do(session, effect)
        seat = self._seats.get(session)  # carrying out an effect may have brought the next event
        if seat is not None and seat.empty:
            del self._seats[session]
            self._marks[session] = time.monotonic(), seat
        elif seat is not None:
            self._note(session, seat)
        return effects

    def _note(self, session: str, seat: Seat) -> None:
        """Tell the scheduler what the protocol allows with the session's sequences."""
        for epoch in seat.doomed:
            self._sequence(session, epoch).paused = True  # nobody owns it: it only waits to be freed
        sequence = seat.holding and self._scheduler.get(session, seat.holding.epoch)
        if sequence:
            source = seat.source
            sequence.locked, sequence.copying = not seat.may_preempt, source is not None
            sequence.limit = self._rooms.get(source.lease) if source is not None and source.granted else None

    # ---- effects

    def _do(self, session: str, effect: InstanceEffect) -> None:
        match effect:
            case ToRouter(router, News() as news):
                self._news[router].append(news)
            case ToRouter(router, Unmoved() | Ask() as message):
                self._flush_news()
                self._to_routers.append((router, message))
            case ToPeer(peer, message):
                self._to_peers.append((peer, self._complete(message)))
            case Begin(start):
                limits = self._limits
                sequence = Running.begin(
                    session, start.epoch, start.context, limits.context, limits.ends, limits.grammars
                )
                self._scheduler.add(sequence)
            case Drop(epoch):
                self._scheduler.remove(LeaseKey(session, epoch), time.monotonic())
            case Pause(epoch):
                self._sequence(session, epoch).paused = True
            case Unpause(was, epoch):
                self._unpause(self._sequence(session, was), epoch)
            case Timer(clock, lease):
                self._set_timer(clock, lease)
            case Condemn(writer):
                self._outside.condemn(writer)
            case _:
                self._hand_over(session, effect)

    def _hand_over(self, session: str, effect: InstanceEffect) -> None:
        match effect:
            case Reserving():
                self._reserve(session, effect)
            case Lease(reserve):
                self._coming[reserve.lease] = _Coming(reserve, self._scheduler.kv.names_of(reserve.context))
                self._lease(reserve.lease, first=True)
            case Write(epoch, stage, one_sided):
                self._write(self._sequence(session, epoch), stage, one_sided)
            case Receive(stage):
                table = self._scheduler.pool.table(stage.lease)
                self._outside.receive_blocks(stage, table[stage.first : stage.first + stage.count])
            case CloseReceive(lease):
                self._outside.close_receive(lease)
            case Adopt(lease, commit):
                coming, limits = self._coming.pop(lease), self._limits
                model = (limits.context, limits.ends, limits.grammars)
                self._scheduler.adopt(
                    Running.adopt(lease, coming.reserve.context, commit, *model, names=coming.names)
                )
            case Release(lease):
                self._coming.pop(lease, None)
                self._waiting = [waiting for waiting in self._waiting if waiting != lease]
                self._scheduler.release(lease)
            case Quarantine(lease):
                self._scheduler.quarantine(lease)
            case _:
                raise AssertionError(f"unknown effect {effect!r}")

    def _sequence(self, session: str, epoch: Epoch) -> Running:
        sequence = self._scheduler.get(session, epoch)
        assert sequence is not None, f"no sequence {session} {epoch}"
        return sequence

    def _unpause(self, sequence: Running, epoch: Epoch) -> None:
        sequence.paused = False
        if sequence.epoch != epoch:
            self._scheduler.rename(sequence, epoch)

    def _reserve(self, session: str, effect: Reserving) -> None:
        sequence = self._sequence(session, effect.epoch)
        growth = (
            MOVING_ROOM + int(MOVING_SHARE * len(sequence.tokens)) if self._scheduler.role.decode_slots else 0
        )
        blocks = self._blocks(min(sequence.most, len(sequence.tokens) + growth))
        self._rooms[effect.lease] = blocks * self._limits.block_size
        planned = next(source for source in self._seats[session].sources if source.lease == effect.lease)
        reserve = Reserve(
            lease=effect.lease,
            source=self._house.me,
            destination=effect.destination.incarnation,
            fingerprint=self._house.fingerprint,
            layout=self._house.layout,
            blocks=blocks,
            context=sequence.context,
            router=effect.router,
            one_sided=planned.one_sided,
        )
        self._to_peers.append((reserve.destination, reserve))

    def _lease(self, key: LeaseKey, first: bool) -> None:
        """Try to find room; a reservation hears at once that it waits, and later that it has it."""
        coming = self._coming[key]
        reserve = coming.reserve
        held = len(reserve.context.prompt) + len(reserve.context.emitted)
        most = len(reserve.context.prompt) + reserve.context.params.max_tokens
        size = Size(held, min(most, self._limits.context))
        in_turn = not first or not self._waiting
        have = self._try_lease(coming, size) if in_turn else None
        if have is None and first:
            self._waiting.append(key)
        if have is not None or first:
            self._feed(key.session, Leased(key, have is not None, have or 0))

    def _try_lease(self, coming: _Coming, size: Size) -> int | None:
        reserve = coming.reserve
        return self._scheduler.lease(reserve.lease, reserve.blocks, size, reserve.context, coming.names)

    def _retry_leases(self) -> None:
        for key in list(self._waiting):
            self._lease(key, first=False)
            if not self._scheduler.pool.holds(key):
                return  # in order of arrival
            self._waiting.remove(key)

    def _complete(self, message: PeerMessage) -> PeerMessage:
        """Tell a one-sided writer where to write."""
        if not isinstance(message, Grant) or not self._coming[message.lease].reserve.one_sided:
            return message
        table = tuple(self._scheduler.pool.table(message.lease))
        return replace(message, block_ids=table, window=self._window)

    def _write(self, sequence: Running, stage: Stage, one_sided: bool) -> None:
        ids = self._scheduler.pool.table(sequence.key)[stage.first : stage.first + stage.count]
        if not one_sided:
            self._sent_blocks += stage.count
            self._outside.send_blocks(stage, ids, sequence.paused)
            return
        self._written_blocks += stage.count
        grant = self._grants[stage.lease]
        targets = grant.block_ids[stage.first : stage.first + stage.count]
        if stage.commit is not None:
            self._committing.add(stage.lease)
        self._outside.write_in_place(stage, grant.window, ids, targets, sequence.paused)

    # ---- time

    def _set_timer(self, clock: Clock, lease: LeaseKey) -> None:
        config = self._house.config
        after_s = {
            Clock.RESERVE: config.reserve_wait_s,
            Clock.SETTLE: config.hung_after_s,
            Clock.LEASE: config.lease_s,
            Clock.STOP: config.stop_s,
        }[clock]
        number = self._timer_ids[clock, lease] = next(self._count)
        heapq.heappush(self._timers, (time.monotonic() + after_s, number, clock, lease))

    def _fire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, number, clock, lease = heapq.heappop(self._timers)
            if self._timer_ids.get((clock, lease)) != number:
                continue  # started anew since
            del self._timer_ids[clock, lease]
            self._feed(lease.session, Timeout(clock, lease))

    def _next_due(self) -> float:
        return min(self._next_beat, self._timers[0][0]) if self._timers else self._next_beat

    def _beat(self) -> None:
        now = time.monotonic()
        self._next_beat = now + self._house.config.heartbeat_s
        for session in list(self._seats):
            self._feed(session, Beat())
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Marks are kept for the grace time."""
        while self._marks:
            session, (since, _) = next(iter(self._marks.items()))
            if now - since <= self._house.config.grace_s:
                break
            del self._marks[session]
        gone = [lease for lease in self._grants if not self._seats.get(lease.session, Seat("")).sources]
        for lease in gone:
            del self._grants[lease]
        for lease in [lease for lease in self._rooms if not self._seats.get(lease.session, Seat("")).sources]:
            del self._rooms[lease]

    # ---- what is said

    def _flush(self) -> None:
        self._begin_swaps()
        self._flush_news()
        self.load = self._measure()
        self.alive_at = time.monotonic()
        self.sessions = tuple(
            (seat.holding.router, News(key, seat.holding.epoch, seat.holding.told))
            for key, seat in self._seats.items()
            if seat.holding is not None
        )
        if self._to_routers or self._to_peers:
            self._outside.send(self._to_routers, self._to_peers)
            self._to_routers, self._to_peers = [], []

    def _begin_swaps(self) -> None:
        for swap in self._scheduler.kv.take_swaps():
            self._outside.swap(swap)

    def _flush_news(self) -> None:
        """One message a step for each router, holding all its tokens."""
        if self._news:
            load = self._measure()
            self._to_routers += [(router, Step(tuple(news), load)) for router, news in self._news.items()]
            self._news.clear()

    def _blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self._limits.block_size)

    def _measure(self) -> LoadView:
        scheduler = self._scheduler
        scheduler.pool.expire(time.monotonic())
        counts = scheduler.pool.counts()
        return LoadView(
            total_blocks=counts.total,
            free_blocks=counts.free,
            cached_blocks=counts.cached - counts.pinned,
            held_blocks=counts.held + counts.pinned,
            leased_blocks=counts.leased,
            quarantined_blocks=counts.quarantined,
            waiting=scheduler.waiting,
            running=scheduler.running,
            queued_tokens=scheduler.queued_tokens,
            prefill_tokens=scheduler.role.prefill_tokens,
            decode_slots=scheduler.role.decode_slots,
            block_size=self._limits.block_size,
            steps=self._steps,
            step_s=self._step_s,
            asked_tokens=scheduler.kv.asked_tokens,
            hit_tokens=scheduler.kv.hit_tokens,
            preemptions=scheduler.preemptions,
            written_blocks=self._written_blocks,
            sent_blocks=self._sent_blocks,
        )
