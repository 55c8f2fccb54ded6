"""An instance without a model: the real seats over real sockets, tokens from a formula, KV that is only counted."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from penstock.handover import effects as fx
from penstock.handover import wire
from penstock.handover.config import HandoverConfig
from penstock.handover.frames import Hello, PeerHello, SeenBatch, Step, Welcome
from penstock.handover.house import House
from penstock.handover.seat import Seat
from penstock.handover.values import (
    Address,
    Context,
    End,
    Epoch,
    Incarnation,
    Layout,
    News,
    Reserve,
    TokenRecord,
)
from penstock.policy.state import InstanceView, LoadView
from penstock.proto import worker_pb2, worker_pb2_grpc

VOCABULARY = 1000
EOS = 7
BLOCK = 16
CHUNK = 64
TOTAL_BLOCKS = 4096
LAYOUT = Layout(1, 1, 1, "float32", BLOCK)
FAST = HandoverConfig(
    heartbeat_s=0.03,
    hung_after_s=0.4,
    silence_s=0.8,
    lease_s=1.0,
    reserve_wait_s=0.3,
    transport_s=0.5,
    grace_s=2.0,
)
"""Deadlines for tests."""


def token(context: Context, index: int) -> int:
    """What the toy model answers at `index`: depends on prompt and seed, and never on who computes it."""
    drawn = context.params.seed * 17 + context.params.choice * 101
    mixed = (sum(context.prompt) * 31 + drawn + (index * 2654435761 >> 7)) % VOCABULARY
    return mixed if mixed != EOS or not context.params.ignore_eos else EOS + 1


def output(prompt, max_tokens, seed=0, ignore_eos=True, choice=0) -> list[int]:
    """The whole answer that a client must get."""
    from penstock.handover.values import SamplingParams

    params = SamplingParams(seed=seed, choice=choice, max_tokens=max_tokens, ignore_eos=ignore_eos)
    context = Context(tuple(prompt), (), params)
    ids = []
    for index in range(max_tokens):
        ids.append(token(context, index))
        if ids[-1] == EOS and not ignore_eos:
            break
    return ids


@dataclass
class Sequence:
    context: Context
    emitted: list[int]
    computed: int = 0
    paused: bool = False
    ended: bool = False
    sampled: bool = False
    """A token was made here."""

    @property
    def length(self) -> int:
        return len(self.context.prompt) + len(self.emitted)


@dataclass
class ToyInstance(worker_pb2_grpc.WorkerServiceServicer):
    """`full` grants nothing; `frozen` is a hung process; `kill` a dead one."""

    name: str
    prefill_tokens: int = 0
    decode_slots: int = 0
    life: int = 1
    step_s: float = 0.002
    cfg: HandoverConfig = FAST
    vocabulary: int = VOCABULARY
    """What it says of its model."""
    full: bool = False
    frozen: bool = False
    seats: dict[str, Seat] = field(default_factory=dict)
    sequences: dict[tuple[str, Epoch], Sequence] = field(default_factory=dict)
    leases: dict = field(default_factory=dict)
    starts: list = field(default_factory=list)
    """Every start that was accepted."""
    lose_starts: int = 0
    """How many starts are still to be lost on the way."""

    async def start(self) -> None:
        self.me = Incarnation(self.name, self.life)
        self.house = House(self.me, "toy", LAYOUT, self.cfg, reaches=frozenset("abcdefgh"))
        self.routers: dict[str, asyncio.Queue] = {}
        self.heard_at: dict[str, float] = {}
        self.book: dict[Incarnation, str] = {}
        self.peers: dict[Incarnation, asyncio.Queue] = {}
        self.news: dict[str, list[News]] = defaultdict(list)
        self.tasks: set[asyncio.Task] = set()
        self.steps = 0
        self.server = grpc.aio.server()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self.server)
        self.at = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        self.spawn(self.run())
        self.spawn(self.beat())

    @property
    def view(self) -> InstanceView:
        load = LoadView(prefill_tokens=self.prefill_tokens, decode_slots=self.decode_slots)
        return InstanceView(name=self.name, life=self.life, address=self.at, pool="toy", load=load)

    @property
    def idle(self) -> bool:
        """Nothing is held: no sequence, no lease, no session that waits for its router."""
        return not self.sequences and not self.leases and all(seat.empty for seat in self.seats.values())

    def drain(self) -> None:
        """It says that it is to be emptied, and takes nothing more."""
        self.house = replace(self.house, draining=True)

    def spawn(self, work) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def kill(self) -> None:
        self.frozen = True
        for task in list(self.tasks):
            task.cancel()
        if self.server is not None:
            await self.server.stop(0)
        self.server = None  # gRPC's server wants to die while its loop lives

    def bury(self, peer: Incarnation) -> None:
        """The peer is dead for certain."""
        for session in list(self.seats):
            self.feed(session, fx.PeerLost(peer))

    # ---- the machines

    def feed(self, session: str, event) -> None:
        if self.frozen:
            return
        seat = self.seats.get(session, Seat(session))
        if isinstance(event, fx.Leased | fx.Written) and not self.expects(seat, event):
            return
        self.seats[session], effects = seat.on(event, self.house)
        for effect in effects:
            self.carry_out(session, effect)

    def expects(self, seat: Seat, event) -> bool:
        known = seat.sources if isinstance(event, fx.Written) else seat.leases
        return any(entry.lease == event.lease for entry in known)

    def later(self, seconds: float, session: str, event) -> None:
        asyncio.get_running_loop().call_later(seconds, self.feed, session, event)

    def carry_out(self, session: str, effect) -> None:
        match effect:
            case fx.ToRouter(router, News() as news):
                self.news[router].append(news)
            case fx.ToRouter(router, message):
                self.to_router(router, message)
            case fx.ToPeer(peer, message):
                self.to_peer(peer, message)
            case fx.Begin(start):
                self.starts.append(start)
                self.sequences[session, start.epoch] = Sequence(start.context, list(start.context.emitted))
            case fx.Reserving(lease, epoch, destination, router, one_sided):
                self.book[destination.incarnation] = destination.at
                sequence = self.sequences[session, epoch]
                context = replace(sequence.context, emitted=tuple(sequence.emitted))
                to = destination.incarnation
                self.to_peer(to, Reserve(lease, self.me, to, "toy", LAYOUT, 1, context, router, one_sided))
            case fx.Pause(epoch):
                self.sequences[session, epoch].paused = True
            case fx.Unpause(was, epoch):
                sequence = self.sequences.pop((session, was))
                sequence.paused = False
                self.sequences[session, epoch] = sequence
            case fx.Drop(epoch):
                del self.sequences[session, epoch]
            case fx.Lease(reserve):
                self.leases[reserve.lease] = reserve
                self.later(0, session, fx.Leased(reserve.lease, not self.full))
            case fx.Write(_, stage):
                self.later(0.001, session, fx.Written(stage.lease, True))
            case fx.Adopt(lease, commit):
                context = self.leases.pop(lease).context
                emitted = [*context.emitted[: commit.first_index], *(record.id for record in commit.records)]
                sequence = Sequence(context, emitted, commit.computed)
                assert sequence.computed == sequence.length - 1, "the KV of all but the last token is here"
                self.sequences[session, lease.epoch] = sequence
            case fx.Release(lease):
                self.leases.pop(lease, None)
            case fx.Timer(clock, lease):
                self.later(self.seconds(clock), session, fx.Timeout(clock, lease))

    def seconds(self, clock: fx.Clock) -> float:
        cfg = self.cfg
        return {
            fx.Clock.RESERVE: cfg.reserve_wait_s,
            fx.Clock.SETTLE: cfg.hung_after_s,
            fx.Clock.LEASE: cfg.lease_s,
            fx.Clock.STOP: cfg.heartbeat_s,
        }[clock]

    # ---- time

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            self.steps += 1
            for (session, epoch), sequence in list(self.sequences.items()):
                seat = self.seats[session]
                if seat.holding is None or seat.holding.epoch != epoch or sequence.paused or sequence.ended:
                    continue
                if self.waits(sequence) or self.frozen:
                    continue
                self.feed(session, fx.Launched())
                records = self.advance(sequence)
                whole, used = sequence.computed // BLOCK, -(-sequence.computed // BLOCK)
                ready = sequence.computed == sequence.length - bool(sequence.emitted)
                self.feed(
                    session, fx.Stepped(records, whole, used, sequence.computed, ready and bool(records))
                )
            self.flush()

    def waits(self, sequence: Sequence) -> bool:
        """Prefilled, on an instance that does not decode: it stays until it is handed over."""
        return sequence.computed == sequence.length - 1 and sequence.sampled and not self.decode_slots

    def advance(self, sequence: Sequence) -> tuple[TokenRecord, ...]:
        sequence.computed = min(sequence.computed + CHUNK, sequence.length)
        if sequence.computed < sequence.length:
            return ()
        params, index = sequence.context.params, len(sequence.emitted)
        made = token(sequence.context, index)
        end = End.LENGTH if index + 1 == params.max_tokens else None
        end = End.STOP if made == EOS and not params.ignore_eos else end
        sequence.emitted.append(made)
        sequence.sampled = True
        sequence.ended = end is not None
        return (TokenRecord(made, end),)

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(self.cfg.heartbeat_s)
            for session, seat in list(self.seats.items()):
                if seat.holding is not None:
                    self.feed(session, fx.Beat() if self.hears(seat.holding.router) else fx.RouterSilent())
            self.flush(whether_or_not=True)

    def hears(self, router: str) -> bool:
        return time.monotonic() - self.heard_at.get(router, 0.0) < self.cfg.grace_s

    def flush(self, whether_or_not: bool = False) -> None:
        for router in self.routers if whether_or_not else list(self.news):
            self.to_router(router, Step(tuple(self.news.pop(router, ())), self.load()))

    def load(self) -> LoadView:
        queued = sum(sequence.length - sequence.computed for sequence in self.sequences.values())
        return LoadView(
            total_blocks=TOTAL_BLOCKS,
            free_blocks=TOTAL_BLOCKS - len(self.sequences) - len(self.leases),
            running=len(self.sequences),
            queued_tokens=max(0, queued),
            prefill_tokens=self.prefill_tokens,
            decode_slots=self.decode_slots,
            block_size=BLOCK,
            steps=self.steps,
            step_s=self.step_s,
            draining=self.house.draining,
        )

    # ---- sockets

    def to_router(self, router: str, frame) -> None:
        if router in self.routers and not self.frozen:
            self.routers[router].put_nowait(wire.to_link_response(frame))

    async def Link(self, request_iterator, context):
        first = wire.from_link_request(await anext(request_iterator))
        assert isinstance(first, Hello)
        if first.incarnation != self.me:
            return
        self.heard_at[first.router] = time.monotonic()
        queue = self.routers[first.router] = asyncio.Queue()
        self.to_router(first.router, Welcome(self.me, "toy", 4096, self.vocabulary, 1))
        self.to_router(first.router, Step((), self.load()))
        for session, seat in list(self.seats.items()):
            if seat.holding is not None and seat.holding.router == first.router:
                self.feed(session, fx.Beat())
        self.spawn(self.listen(first.router, request_iterator))
        while True:
            yield await queue.get()

    async def listen(self, router: str, requests) -> None:
        try:
            async for request in requests:
                frame = wire.from_link_request(request)
                self.heard_at[router] = time.monotonic()
                for message in frame.seen if isinstance(frame, SeenBatch) else (frame,):
                    self.told(router, message)
        except (grpc.RpcError, asyncio.CancelledError):
            pass

    def told(self, router: str, message) -> None:
        if type(message).__name__ == "Beat":
            return
        if type(message).__name__ == "Start" and self.lose_starts:
            self.lose_starts -= 1
            return
        self.feed(message.session, fx.FromRouter(router, message))

    def to_peer(self, peer: Incarnation, message) -> None:
        if peer not in self.peers:
            self.peers[peer] = asyncio.Queue()
            self.spawn(self.speak(peer, self.peers[peer]))
        self.peers[peer].put_nowait(message)

    async def speak(self, peer: Incarnation, queue: asyncio.Queue) -> None:
        async with grpc.aio.insecure_channel(self.book[peer]) as channel:
            call = worker_pb2_grpc.WorkerServiceStub(channel).Peer()
            try:
                await call.write(wire.to_peer_request(PeerHello(Address(self.me, self.at), peer)))
                while True:
                    message = await queue.get()
                    if not self.frozen:
                        await call.write(wire.to_peer_request(message))
            except (grpc.RpcError, asyncio.InvalidStateError):
                self.peers.pop(peer, None)

    async def Peer(self, request_iterator, context):
        first = wire.from_peer_request(await anext(request_iterator))
        assert isinstance(first, PeerHello)
        if first.to != self.me:
            return
        self.book[first.sender.incarnation] = first.sender.at
        async for request in request_iterator:
            message = wire.from_peer_request(request)
            self.feed(message.lease.session, fx.FromPeer(first.sender.incarnation, message))
        yield worker_pb2.PeerResponse()
