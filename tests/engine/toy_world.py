"""Engines, a router's sessions and the network between them in one thread, moved by a seeded draw.

The engines, schedulers, pools, seats and sessions are the shipped ones; the model is a toy, the copies and the clock
are the world's. Messages of one stream keep their order; streams lose what they hold, messages come late, and copies
fail, hang or end in any order.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from toy_model import EOS, VOCABULARY, ToyModel

from penstock.decode_worker.phase import DecodePhase
from penstock.engine.blocks import GONE, BlockPool, Holder
from penstock.engine.engine import Engine
from penstock.engine.host_tier import Swap
from penstock.engine.outside import Limits
from penstock.engine.scheduler import Scheduler
from penstock.handover import effects as fx
from penstock.handover.config import HandoverConfig
from penstock.handover.frames import InstanceFrame, Step
from penstock.handover.house import House
from penstock.handover.session import Session
from penstock.handover.values import (
    Address,
    Context,
    Incarnation,
    Layout,
    LeaseKey,
    MoveMode,
    PeerMessage,
    Stage,
    TokenRecord,
    Window,
)
from penstock.policy.batching import Budget
from penstock.prefill_worker.phase import PrefillPhase

BLOCK = 4
CONTEXT = 160
LAYOUT = Layout(1, 1, 1, "float32", BLOCK)
ROUTER = "router"


class Clock:
    """Stands in for the module `time` in the engine."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@dataclass(eq=False)
class Copy:
    """A copy under way. One-sided: blocks land as one write. Two-sided: they leave, and land where they are taken."""

    source: Instance
    stage: Stage
    ids: tuple[int, ...]
    targets: tuple[int, ...] | None = None
    """Where a one-sided copy writes."""
    data: np.ndarray | None = None
    """What left, two-sided."""
    rests: bool = False
    """It takes its time, and may be given up until then."""


@dataclass(eq=False)
class Instance:
    """One incarnation: an engine and the world's hands around it (`Outside`)."""

    world: World
    me: Incarnation
    role: Budget
    blocks: int
    shares_memory: bool
    dead: bool = False
    hung: bool = False
    """Does nothing until it goes on; what is sent to it waits."""
    draining: bool = False
    """Takes nothing new, and ends when all has been moved away."""

    def __post_init__(self) -> None:
        window = self.world.window
        self.model = ToyModel(self.blocks, BLOCK, window)
        self.host_cells = np.full((max(1, self.world.host_blocks), BLOCK), -1, dtype=np.int64)
        self.pool = BlockPool(self.blocks, span=None if window is None else -(-(window - 1) // BLOCK))
        self.scheduler = Scheduler(
            self.pool,
            BLOCK,
            self.role,
            PrefillPhase(),
            DecodePhase(),
            "toy",
            rule=self.world.rule,
            host_blocks=self.world.host_blocks,
        )
        instance = House(self.me, "toy", LAYOUT, self.world.config)
        memory = Window("here", 1, 1, self.blocks, self.blocks) if self.shares_memory else None
        limits = Limits(CONTEXT, frozenset({EOS}), BLOCK, VOCABULARY)
        overlap = self.world.overlap
        hears = {"hears_after_s": 0.0} if self.world.hears else {}
        self.engine = Engine(
            self.model, self.scheduler, instance, limits, self, memory, overlap=overlap, **hears
        )

    # ---- Outside

    def send(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        for _, frame in to_routers:
            self.world.streams[self.me, None].append(frame)
        for peer, message in to_peers:
            self.world.streams[self.me, peer].append(message)

    def condemn(self, writer: Incarnation) -> None:
        self.world.condemned.add(writer)

    def write_in_place(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        urgent: bool,
    ) -> None:
        assert urgent or stage.commit is None, "a commit waits for nothing"
        if window is None:
            self.world.unreachable.add(stage.destination)
            self.engine.post(stage.lease.session, fx.Written(stage.lease, False))
            return
        assert len(source_ids) == len(destination_ids) == stage.count
        assert GONE not in (*source_ids, *destination_ids)
        self.world.copies.append(
            Copy(self, stage, tuple(source_ids), tuple(destination_ids), rests=not urgent)
        )

    def give_up(self, lease: LeaseKey) -> None:
        for copy in [copy for copy in self.world.copies if copy.rests and copy.stage.lease == lease]:
            self.world.copies.remove(copy)
            self.engine.post(lease.session, fx.Written(lease, False))

    def send_blocks(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        assert urgent or stage.commit is None, "a commit waits for nothing"
        assert len(ids) == stage.count and GONE not in ids
        self.world.copies.append(Copy(self, stage, tuple(ids), rests=not urgent))

    def receive_blocks(self, stage: Stage, ids: Sequence[int]) -> None:
        assert GONE not in ids
        self.world.receives.append((self, stage, tuple(ids)))

    def decline_blocks(self, stage: Stage) -> None:
        self.world.on_the_wire.pop((stage.pair, stage.sequence), None)

    def close_receive(self, lease: LeaseKey) -> None:
        pass

    def swap(self, swap: Swap) -> None:
        assert len(swap.device_ids) == len(swap.host_ids) > 0 and GONE not in (
            *swap.device_ids,
            *swap.host_ids,
        )
        self.world.swaps.append((self, swap))

    def reaches(self, destination: Address) -> bool:
        return self.shares_memory and destination.incarnation not in self.world.unreachable

    # ---- what tests ask

    def held_as(self, ids: Sequence[int], *holders: Holder) -> bool:
        return bool(np.isin(self.pool._kind[list(ids)], holders).all())

    @property
    def idle(self) -> bool:
        """Nothing is held, and the ledger of the driver is as empty as the pool's."""
        engine, counts = self.engine, self.pool.counts()
        books = not engine._moving.idle or self.scheduler._leased or list(self.scheduler)
        seats_empty = all(seat.empty for seat in engine._seats.values())
        books = books or self.scheduler.kv.swapping
        return counts.free + counts.cached == counts.total and not books and seats_empty


@dataclass
class Stream:
    """One choice of a request as its client sees it, with the shipped session behind it."""

    context: Context
    session: Session
    got: list[TokenRecord] = field(default_factory=list)
    heard_at: float = 0.0
    cancelled: bool = False

    @property
    def ids(self) -> list[int]:
        return [record.id for record in self.got]


class World:
    def __init__(
        self,
        seed: int,
        roles: dict[str, Budget],
        config: HandoverConfig,
        clock: Clock,
        blocks: int = 128,
        in_place: bool = True,
        loss: float = 0.0,
        rule: str = "predicted",
        host_blocks: int = 0,
        window: int | None = None,
        overlap: bool = False,
    ):
        self.draw = random.Random(seed)
        self.config = config
        self.clock = clock
        self.loss = loss
        self.in_place = in_place
        self.blocks = blocks
        self.rule = rule
        self.host_blocks = host_blocks
        self.window = window
        """Tokens that a token sees, itself included."""
        self.overlap = overlap
        self.hears = bool(seed // 2 % 2)
        """What is delivered between two rounds is taken while the second one's step runs, not after it."""
        self.swaps: list[tuple[Instance, Swap]] = []
        self.swapped = 0
        self.roles = roles
        self.streams: defaultdict[tuple[Incarnation | None, Incarnation | None], deque] = defaultdict(deque)
        """From and to; None is the router."""
        self.copies: list[Copy] = []
        self.on_the_wire: dict[tuple[str, int], tuple[Copy, np.ndarray]] = {}
        self.receives: list[tuple[Instance, Stage, tuple[int, ...]]] = []
        self.condemned: set[Incarnation] = set()
        self.unreachable: set[Incarnation] = set()
        self.busy = False
        """Copies that take their time never have it."""
        self.sessions: dict[str, Stream] = {}
        self.moves: list[bool] = []
        self.instances = {name: self.build(name, 1) for name in roles}
        self._sent = 0
        self._weights: tuple[float, ...] = (10, 6, 5, 5, 2, 3)

    def build(self, name: str, life: int, shares_memory: bool | None = None) -> Instance:
        shares = self.in_place if shares_memory is None else shares_memory
        return Instance(self, Incarnation(name, life), self.roles[name], self.blocks, shares)

    # ---- what happens

    def be_uneven(self) -> None:
        """Copies may take long, or time fly."""
        slow, fly = self.draw.choice((0.3, 5)), self.draw.choice((2, 8))
        self._weights = 10, 6, slow, self.draw.choice((0.3, 5)), fly, self.draw.choice((0.3, 5))

    def happen(self) -> None:
        """One thing, drawn by weight."""
        things = (self.deliver, self.step, self.copy, self.receive, self.pass_time, self.swap)
        self.draw.choices(things, self._weights)[0]()

    def settle(self, seconds: float) -> None:
        """Everything goes well until all is over, but for no longer than that."""
        self.loss = 0.0
        until = self.clock.now + seconds
        while self.clock.now < until and not self.over:
            for _ in range(3):
                while any(self.streams.values()) or self.copies or self.receives or self.swaps:
                    self.deliver(), self.copy(), self.receive(), self.swap()
                for instance in self.living:
                    self._round(instance)
            self.pass_time(0.02)

    @property
    def over(self) -> bool:
        """Every stream has ended and nothing is held."""
        ended = all(stream.session.closed for stream in self.sessions.values())
        return ended and all(instance.idle or instance.hung for instance in self.living)

    @property
    def living(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if not instance.dead]

    def step(self) -> None:
        self._round(self.draw.choice(self.living))

    def _round(self, instance: Instance) -> None:
        if not instance.hung:
            instance.engine.round(wait=False)

    def pass_time(self, seconds: float | None = None) -> None:
        self.clock.now += seconds if seconds is not None else self.draw.choice((0.002, 0.01, 0.05, 0.2))
        for writer in self.condemned:
            if not self.instances[writer.instance].dead and self.instances[writer.instance].me == writer:
                self.kill(writer.instance)
        self.condemned.clear()
        for stream in self.sessions.values():
            if not stream.session.closed and self.clock.now - stream.heard_at > self.config.silence_s:
                stream.heard_at = self.clock.now
                self.tell(stream, fx.Silent())

    def deliver(self) -> None:
        """The first message of some stream arrives, or all that the stream holds is lost."""
        waiting = [ends for ends, held in self.streams.items() if held]
        if not waiting:
            return
        ends = self.draw.choice(waiting)
        if self.draw.random() < self.loss:
            self.streams[ends].clear()
            return
        self.arrive(ends, twice=self.draw.random() < self.loss)

    def arrive(self, ends: tuple, place: int = 0, twice: bool = False) -> None:
        """The message at that place of a stream arrives, before those that were sent earlier; perhaps again later."""
        (sender, receiver), message = ends, self.streams[ends][place]
        del self.streams[ends][place]
        if twice:
            self.streams[ends].append(message)
        if receiver is None:
            self._router_hears(sender, message)
        elif (instance := self._at(receiver)) is not None:
            heard = fx.FromRouter(ROUTER, message) if sender is None else fx.FromPeer(sender, message)
            session = message.session if sender is None else message.lease.session
            instance.engine.post(session, heard)

    def _at(self, who: Incarnation) -> Instance | None:
        instance = self.instances[who.instance]
        return instance if instance.me == who and not instance.dead else None

    # ---- copies

    @property
    def due_copies(self) -> list[Copy]:
        return [copy for copy in self.copies if not (self.busy and copy.rests)]

    def copy(self) -> None:
        """Some copy ends at its source: well, or not."""
        due = self.due_copies
        if not due:
            return
        chosen = due[self.draw.randrange(len(due))]
        number = next(place for place, copy in enumerate(self.copies) if copy is chosen)
        self.end_copy(number, self.draw.random() < self.loss)

    def end_copy(self, number: int, fails: bool) -> None:
        copy = self.copies.pop(number)
        if copy.source.dead:
            return
        assert copy.source.held_as(copy.ids, Holder.HELD), "a copy reads what nobody holds"
        if copy.targets is not None:
            self._write(copy, fails)
        else:
            self._send(copy, fails)
        copy.source.engine.post(copy.stage.lease.session, fx.Written(copy.stage.lease, not fails))

    def _write(self, copy: Copy, fails: bool) -> None:
        instance = self.instances[copy.stage.destination.instance]
        if instance.me == copy.stage.destination:  # memory outlives a dead owner, where it harms nobody
            leased = instance.held_as(copy.targets, Holder.LEASED, Holder.QUARANTINED)
            assert leased, "a copy writes what is not leased"
            half = len(copy.ids) // 2 if fails else len(copy.ids)
            instance.model.cells[list(copy.targets[:half])] = copy.source.model.cells[list(copy.ids[:half])]
        if fails:
            self.unreachable.add(copy.stage.destination)

    def _send(self, copy: Copy, fails: bool) -> None:
        self._sent += 1
        data = copy.source.model.cells[list(copy.ids)].copy()
        pair = f"{copy.source.me.instance}.{copy.source.me.life}"
        stage = replace(copy.stage, pair=pair, sequence=self._sent)
        header_leaves = not fails or self.draw.random() < 0.5
        if header_leaves:
            self.streams[copy.source.me, copy.stage.destination].append(stage)
        if not fails:
            self.on_the_wire[pair, self._sent] = copy, data

    def receive(self) -> None:
        """Some receive ends."""
        if not self.receives:
            return
        self.end_receive(self.draw.randrange(len(self.receives)), self.draw.random() < self.loss)

    def end_receive(self, number: int, fails: bool) -> None:
        instance, stage, ids = self.receives.pop(number)
        _, data = self.on_the_wire.pop((stage.pair, stage.sequence), (None, None))
        ok = data is not None and len(data) == len(ids) and not fails
        if instance.dead:
            return
        if ok:
            assert instance.held_as(ids, Holder.LEASED), "a receive writes what is not leased"
            instance.model.cells[list(ids)] = data
        instance.engine.post(stage.lease.session, fx.Received(stage.lease, stage.first, stage.count, ok))

    # ---- host memory

    def swap(self) -> None:
        """Some copy to or from host memory ends, and only now are its blocks read and written."""
        if not self.swaps:
            return
        self.end_swap(self.draw.randrange(len(self.swaps)), self.draw.random() < 0.15)

    def end_swap(self, number: int, fails: bool) -> None:
        instance, swap = self.swaps.pop(number)
        if instance.dead:
            return
        ok = not fails
        count = len(swap.host_ids) if ok else len(swap.host_ids) // 2
        device, host = list(swap.device_ids[:count]), list(swap.host_ids[:count])
        if swap.out:
            instance.host_cells[host] = instance.model.cells[device]
        else:
            instance.model.cells[device] = instance.host_cells[host]
        self.swapped += not swap.out
        instance.engine.post_swapped(swap.number, ok)

    # ---- the router

    def start(self, key: str, context: Context) -> Stream:
        stream = self.sessions[key] = Stream(context, Session(key, 1), heard_at=self.clock.now)
        self.dispatch(stream)
        return stream

    def dispatch(self, stream: Stream) -> None:
        prefills = [instance for instance in self._staying if instance.role.prefill_tokens]
        prefill = self.draw.choice(prefills)
        others = [instance for instance in self.decoders if instance is not prefill]
        stays = prefill.role.decode_slots and (not others or self.draw.random() < 0.3)
        decode = None if stays else self.draw.choice(others)
        at = self.address(decode) if decode else None
        self.tell(stream, fx.Dispatched(self.address(prefill), at))

    @property
    def decoders(self) -> list[Instance]:
        return [instance for instance in self._staying if instance.role.decode_slots]

    @property
    def _staying(self) -> list[Instance]:
        return [instance for instance in self.living if not instance.draining]

    def address(self, instance: Instance) -> Address:
        return Address(instance.me, instance.me.instance)

    def move(self, key: str, mode: MoveMode = MoveMode.LIVE) -> None:
        self.tell(self.sessions[key], fx.MoveAsked(self.address(self.draw.choice(self.decoders)), mode))

    def move_to(self, key: str, instance: Instance) -> None:
        self.tell(self.sessions[key], fx.MoveAsked(self.address(instance)))

    def nudge(self, key: str) -> None:
        self.tell(self.sessions[key], fx.Nudge())

    def drain(self) -> None:
        """Move everything from what is draining; one that holds nothing more ends, and another life begins."""
        for instance in [one for one in self.living if one.draining]:
            for key, stream in self.sessions.items():
                if stream.session.owner == instance.me and self.decoders:
                    self.move(key)
            if instance.idle:
                self.kill(instance.me.instance)

    def resume(self, key: str) -> None:
        """The router has died, and all that it knew; the client comes back to another with what it has."""
        stream = self.sessions[key]
        stream.session = Session(key, stream.session.attempt + 1, next_index=len(stream.got))
        stream.heard_at = self.clock.now
        self.dispatch(stream)

    def cancel(self, key: str) -> None:
        self.sessions[key].cancelled = True
        self.tell(self.sessions[key], fx.Cancel())

    def kill(self, name: str) -> None:
        """The process dies; everybody learns of it, and another life begins."""
        gone = self.instances[name]
        gone.dead = True
        for ends in list(self.streams):
            if gone.me in ends:
                del self.streams[ends]
        self.copies = [copy for copy in self.copies if copy.source is not gone]
        self.receives = [entry for entry in self.receives if entry[0] is not gone]
        self.instances[name] = self.build(name, gone.me.life + 1)
        for instance in self.instances.values():
            instance.engine.post_all(fx.PeerLost(gone.me))
        for stream in self.sessions.values():
            self.tell(stream, fx.InstanceLost(gone.me))

    def _router_hears(self, sender: Incarnation, frame: InstanceFrame) -> None:
        for message in frame.news if isinstance(frame, Step) else (frame,):
            stream = self.sessions[message.session]
            if message.epoch >= stream.session.epoch:
                stream.heard_at = self.clock.now
            self.tell(stream, fx.FromInstance(sender, message))

    def tell(self, stream: Stream, event: fx.SessionEvent) -> None:
        emitted = tuple(stream.ids)
        stream.session, effects = stream.session.on(event, replace(stream.context, emitted=emitted))
        for effect in effects:
            self._carry_out(stream, effect)

    def _carry_out(self, stream: Stream, effect: fx.SessionEffect) -> None:
        match effect:
            case fx.Tell(instance, message):
                self.streams[None, instance].append(message)
            case fx.Deliver(first, records, _):
                assert first == len(stream.got), "a token came twice, or one is missing"
                assert not stream.cancelled, "a token after the cancel"
                stream.got += records
            case fx.NeedDispatch():
                stream.heard_at = self.clock.now
                self.dispatch(stream)
            case fx.NeedDestination(_, refused):
                others = [instance for instance in self.decoders if instance.me != refused] or self.decoders
                to = self.address(self.draw.choice(others))
                self.tell(stream, fx.MoveAsked(to, first=True))
            case fx.MoveEnded(_, done):
                self.moves.append(done)
