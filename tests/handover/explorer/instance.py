"""One instance of the explored world: a shipped `Seat`, and a driver that does what `effects.py` says of every effect.

An instance is a value; `Driver.react` gives the next value and what leaves the instance. It raises `Breach` where a
law breaks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from penstock.handover.config import HandoverConfig
from penstock.handover.effects import (
    Adopt,
    Beat,
    Begin,
    Clock,
    CloseReceive,
    Condemn,
    Drop,
    FromPeer,
    FromRouter,
    Launched,
    Lease,
    Leased,
    Pause,
    PeerLost,
    Preempted,
    Quarantine,
    Receive,
    Received,
    Release,
    Reserving,
    RouterSilent,
    Stepped,
    Timeout,
    Timer,
    ToPeer,
    ToRouter,
    Unpause,
    Write,
    Written,
)
from penstock.handover.house import House
from penstock.handover.seat import Seat
from penstock.handover.values import (
    Context,
    End,
    Epoch,
    Grant,
    Incarnation,
    Layout,
    LeaseKey,
    Reserve,
    Revoke,
    Stage,
    TokenRecord,
)

from .breach import require
from .tokens import Tokens, prompt

SESSION = "s"
LAYOUT = Layout(1, 1, 1, "float32", 2)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the world."""

    prompt: int = 2
    output: int = 3
    block_size: int = 2
    pool: int = 3
    chunk: int = 2
    """Most tokens in a step."""
    one_sided: bool = False
    decodes: str = "ABC"
    """The instances that decode; another stops past its prefill, until the sequence is taken elsewhere."""
    known: int = 0
    """So many leading blocks of the prompt are cached on every instance from the start, for leases to begin with."""
    span: int | None = None
    """Where a sliding window passes over blocks: how many full ones before its own a token sees."""
    flights: int = 1
    """Most steps that are under way at a time. With two an end is not foreseen: one step too many may be launched."""
    config: HandoverConfig = HandoverConfig(final_blocks=1, stage_blocks=1)

    def passed(self, computed: int) -> int:
        """Leading blocks that the token behind so many does not see."""
        return 0 if self.span is None else max(0, computed // self.block_size - self.span)

    @property
    def table(self) -> int:
        """Blocks of a whole sequence; its last token's KV is computed by a step too many alone."""
        return -(-(self.prompt + self.output + self.flights - 2) // self.block_size)


CACHE = ("cache", Epoch(0, 0))
"""Holder of the blocks that are cached from the start: they stay, may be shared, and nobody may write them."""


GONE = -1
"""In a table, at the place of a block that a window has passed."""


@dataclass(frozen=True, slots=True)
class Block:
    """`holder` is ("seq" | "lease", epoch it was had under), `CACHE` or None; `tag` (origin, token ids) or None."""

    holder: tuple[str, Epoch] | None = None
    tag: tuple | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """`origin` is the epoch under which its blocks were had; `epoch` follows the machines."""

    epoch: Epoch
    origin: Epoch
    tokens: tuple[int, ...]
    blocks: tuple[int, ...] = ()
    computed: int = 0
    paused: bool = False
    until: int | None = None
    """Where nothing decodes: the tokens that it came with; none is launched past them."""


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that has its blocks."""

    reserve: Reserve
    blocks: tuple[int, ...]
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Writing:
    """A `Write` under way; `landed` counts the blocks that are there."""

    stage: Stage
    origin: Epoch
    one_sided: bool
    landed: int = 0


@dataclass(frozen=True, slots=True)
class Receiving:
    """A posted receive; `landed` says that its blocks are there, `closed` that its end was torn down."""

    stage: Stage
    landed: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A launched step: whose, where it may write, how far it computes, and whether it draws a token."""

    origin: Epoch
    blocks: tuple[int, ...]
    computed: int
    draws: bool


@dataclass(frozen=True, slots=True)
class Data:
    """Two-sided blocks on their way: what was read at the source."""

    stage: Stage
    tags: tuple


@dataclass(frozen=True, slots=True)
class Instance:
    name: str
    life: int
    pool: tuple[Block, ...]
    seat: Seat = Seat(SESSION)
    dead: bool = False
    hung: bool = False
    apart: bool = False
    """Nothing that is sent to it or by it arrives, but for what it writes in place."""
    draining: bool = False
    """Everything is moved away, and then it ends."""
    void: Epoch | None = None
    """The highest bound that a router told it."""
    sequences: tuple[Sequence, ...] = ()
    steps: tuple[Step, ...] = ()
    """Under way, the oldest first."""
    waiting: tuple[Reserve, ...] = ()
    held: tuple[Held, ...] = ()
    writes: tuple[Writing, ...] = ()
    receives: tuple[Receiving, ...] = ()
    targets: tuple[tuple[LeaseKey, tuple[int, ...]], ...] = ()
    """Where one-sided writes of a granted lease go."""
    timers: frozenset[tuple[Clock, LeaseKey]] = frozenset()

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(self.name, self.life)

    @property
    def reachable(self) -> bool:
        return not self.hung and not self.apart

    @property
    def free(self) -> bool:
        """Nothing is held: every block is free, and nothing is under way."""
        held = self.sequences or self.held or self.waiting or self.writes or self.receives or self.steps
        return not held and self.seat.empty and all(block.holder in (None, CACHE) for block in self.pool)

    def of(self, origin: Epoch) -> tuple[Step, ...]:
        """The sequence's steps under way."""
        return tuple(step for step in self.steps if step.origin == origin)

    def find(self, origin: Epoch) -> Sequence | None:
        return next((seq for seq in self.sequences if seq.origin == origin), None)

    def under(self, epoch: Epoch) -> Sequence:
        found = [seq for seq in self.sequences if seq.epoch == epoch]
        require(len(found) == 1, f"{self.name} is told of a sequence {epoch} that it does not have")
        return found[0]

    def lease(self, key: LeaseKey) -> Held | None:
        return next((held for held in self.held if held.reserve.lease == key), None)

    def put(self, seq: Sequence) -> Instance:
        return replace(self, sequences=tuple(seq if s.origin == seq.origin else s for s in self.sequences))

    def mark(self, blocks: tuple[int, ...], block: Block) -> Instance:
        pool = list(self.pool)
        for index in blocks:
            pool[index] = block
        return replace(self, pool=tuple(pool))

    def allot(self, count: int, holder: tuple[str, Epoch]) -> tuple[Instance, tuple[int, ...]] | None:
        """The first free blocks, or None where there are too few. What they held before stays in them."""
        free = [i for i, block in enumerate(self.pool) if block.holder is None][:count]
        if len(free) < count:
            return None
        inst = self
        for index in free:
            inst = inst.mark((index,), replace(inst.pool[index], holder=holder))
        return inst, tuple(free)

    def release(self, blocks: tuple[int, ...]) -> Instance:
        inst = self
        for index in blocks:
            if index != GONE and inst.pool[index].holder != CACHE:
                inst = inst.mark((index,), replace(inst.pool[index], holder=None))
        return inst

    def shed(self, seq: Sequence, gone: int) -> Instance:
        """Free the first `gone` blocks of a sequence."""
        kept = (GONE,) * gone + seq.blocks[gone:]
        return self.release(seq.blocks[:gone]).put(replace(seq, blocks=kept))

    def allot_lease(self, reserve: Reserve, passed: int) -> tuple[Instance, tuple[int, ...], int] | None:
        """The cached blocks of the reservation's context and free ones, and how many are cached or `passed`."""
        known = tuple(index for index, block in enumerate(self.pool) if block.holder == CACHE)
        known = (GONE,) * passed + known[passed:]
        allotted = self.allot(reserve.blocks - len(known), ("lease", reserve.lease.epoch))
        return allotted and (allotted[0], (*known, *allotted[1]), len(known))


Post = tuple[str, object]
"""A message and the party it goes to: ("A", sender, message), ("r0", ...), or ("condemn", incarnation)."""


def born(name: str, life: int, shape: Shape) -> Instance:
    size, ids = shape.block_size, prompt(shape.prompt)
    cached = (Block(CACHE, (CACHE[1], ids[at * size : (at + 1) * size])) for at in range(shape.known))
    return Instance(name, life, (*cached, *(Block(),) * shape.pool))


class Driver:
    """Feeds one instance's seat and carries out its effects."""

    def __init__(self, shape: Shape, tokens: Tokens, prompt: tuple[int, ...]) -> None:
        self.shape = shape
        self.tokens = tokens
        self.prompt = prompt

    def react(self, inst: Instance, event: tuple) -> tuple[Instance, tuple]:
        """Next instance and what leaves it: (receiver, sender, message) triples and ("condemn", incarnation) pairs."""
        run = _Run(self, inst)
        getattr(run, "on_" + event[0])(*event[1:])
        run.settle()
        return run.inst, tuple(run.posts)

    def offers(self, inst: Instance) -> tuple[tuple[str, tuple], ...]:
        """Events that the instance may have next by itself: (kind, event), kind being `go` or `due`."""
        if inst.dead:
            return ()
        offers: list[tuple[str, tuple]] = []
        if not inst.hung:
            offers += [
                ("go", ("launch", seq.origin)) for seq in inst.sequences if self._may_launch(inst, seq)
            ]
            if inst.steps:
                offers.append(("go", ("step",)))
            for receiving in inst.receives:
                if receiving.landed or receiving.closed:
                    offers.append(("go", ("received", receiving, receiving.landed and not receiving.closed)))
                if receiving.landed and receiving.closed:
                    offers.append(("go", ("received", receiving, True)))
            offers += [("due", ("timeout", clock, lease)) for clock, lease in sorted(inst.timers, key=str)]
            if inst.seat.holding is not None:
                offers.append(("due", ("beat",)))
        return tuple(offers)

    def _may_launch(self, inst: Instance, seq: Sequence) -> bool:
        computed, tokens = reached(inst, seq)
        if computed == tokens or (seq.until is not None and computed >= seq.until):
            return False
        if len(inst.steps) == self.shape.flights or seq.paused:
            return False
        if len(seq.tokens) == self.shape.prompt + self.shape.output:
            return False
        return bool(seq.blocks) or inst.allot(self.shape.table, ("seq", seq.origin)) is not None


def reached(inst: Instance, seq: Sequence) -> tuple[int, int]:
    """Tokens computed and tokens in all when the steps under way have ended."""
    steps = inst.of(seq.origin)
    return (steps[-1].computed if steps else seq.computed), len(seq.tokens) + sum(
        step.draws for step in steps
    )


class _Run:
    """One reaction: the instance as it changes, and what leaves it."""

    def __init__(self, driver: Driver, inst: Instance) -> None:
        self.driver = driver
        self.shape = driver.shape
        self.inst = inst
        self.posts: list[tuple] = []
        self.queue: deque = deque()
        reaches = frozenset("ABC") if self.shape.one_sided else frozenset()
        self.house = House(inst.incarnation, "model", LAYOUT, self.shape.config, reaches)

    def settle(self) -> None:
        while self.queue or self._grant_waiting():
            self._feed(self.queue.popleft())
        self._forget()

    def _feed(self, event) -> None:
        seat, effects = self.inst.seat.on(event, self.house)
        self.inst = replace(self.inst, seat=seat)
        for effect in effects:
            getattr(self, "_" + type(effect).__name__.lower())(effect)

    def _forget(self) -> None:
        """Timers that the seat ignores never matter again, nor do the targets of handovers that are over."""
        seat = self.inst.seat
        timers = frozenset(t for t in self.inst.timers if seat.on(Timeout(*t), self.house) != (seat, []))
        known = {source.lease for source in seat.sources}
        targets = tuple(target for target in self.inst.targets if target[0] in known)
        self.inst = replace(self.inst, timers=timers, targets=targets)

    def _grant_waiting(self) -> bool:
        for reserve in self.inst.waiting:
            allotted = self._allot_lease(reserve)
            if allotted is not None:
                inst, blocks, have = allotted
                rest = tuple(other for other in inst.waiting if other != reserve)
                self.inst = replace(inst, waiting=rest, held=(*inst.held, Held(reserve, blocks)))
                self.queue.append(Leased(reserve.lease, True, have))
                return True
        return False

    def _allot_lease(self, reserve: Reserve) -> tuple[Instance, tuple[int, ...], int] | None:
        tokens = len(self.driver.prompt) + len(reserve.context.emitted)
        return self.inst.allot_lease(reserve, self.shape.passed(tokens - 1))

    # ---- what happens to the instance

    def on_router(self, router, message) -> None:
        if isinstance(message, Revoke) and (self.inst.void is None or message.bound > self.inst.void):
            self.inst = replace(self.inst, void=message.bound)
        self.queue.append(FromRouter(router, message))

    def on_peer(self, sender, message) -> None:
        if isinstance(message, Grant) and message.source == self.inst.incarnation:
            rest = tuple(t for t in self.inst.targets if t[0] != message.lease)
            self.inst = replace(self.inst, targets=(*rest, (message.lease, message.block_ids)))
        self.queue.append(FromPeer(sender, message))

    def on_timeout(self, clock, lease) -> None:
        self.inst = replace(self.inst, timers=self.inst.timers - {(clock, lease)})
        self.queue.append(Timeout(clock, lease))

    def on_beat(self) -> None:
        self.queue.append(Beat())

    def on_router_silent(self) -> None:
        self.queue.append(RouterSilent())

    def on_lost(self, peer) -> None:
        self.queue.append(PeerLost(peer))

    def on_launch(self, origin) -> None:
        inst, shape = self.inst, self.shape
        seq = inst.find(origin)
        assert seq is not None
        if not seq.blocks:
            allotted = inst.allot(shape.table, ("seq", origin))
            assert allotted is not None
            inst, blocks = allotted
            seq = replace(seq, blocks=blocks)
            inst = inst.put(seq)
        self._check_kv(inst, seq, "a step")
        start, tokens = reached(inst, seq)
        computed = min(tokens, start + shape.chunk)
        wrote = tuple(seq.blocks[start // shape.block_size : -(-computed // shape.block_size)])
        for block in wrote:
            inst = inst.mark((block,), replace(inst.pool[block], tag=("being written", origin)))
        step = Step(origin, wrote, computed, computed == tokens)
        self.inst = replace(inst, steps=(*inst.steps, step))
        self.queue.append(Launched())

    def on_step(self) -> None:
        inst, shape = self.inst, self.shape
        step = inst.steps[0]
        inst = replace(inst, steps=inst.steps[1:])
        for block in step.blocks:
            holder = inst.pool[block].holder
            require(
                holder == ("seq", step.origin), f"a step wrote block {block} of {inst.name}, held by {holder}"
            )
        seq = inst.find(step.origin)
        assert seq is not None
        records: tuple[TokenRecord, ...] = ()
        tokens = seq.tokens
        if step.draws and len(tokens) < shape.prompt + shape.output:
            token = self.driver.tokens.make(
                tokens, f"{inst.name}{inst.life}e{seq.epoch.attempt}.{seq.epoch.n}"
            )
            tokens = (*tokens, token)
            done = len(tokens) == shape.prompt + shape.output
            records = (TokenRecord(token, End.LENGTH if done else None),)
        seq = replace(seq, tokens=tokens, computed=step.computed)
        inst = inst.put(seq)
        written = {block for later in inst.steps for block in later.blocks}
        for index, block in enumerate(seq.blocks):
            if block in step.blocks and block not in written:
                inst = inst.mark((block,), Block(("seq", seq.origin), self._tag(seq, index, seq.computed)))
        self.inst = inst
        holding, kept_from = inst.seat.holding, inst.seat.kept_from
        if holding is not None and holding.epoch == seq.epoch:
            passed = shape.passed(seq.computed)
            self.inst = inst.shed(seq, passed if kept_from is None else min(passed, kept_from))
        full, blocks = seq.computed // shape.block_size, -(-seq.computed // shape.block_size)
        ready = seq.computed == len(seq.tokens) - 1
        passed = shape.passed(len(tokens) - 1)
        self.queue.append(Stepped(records, full, blocks, seq.computed, ready, passed))

    def on_preempt(self) -> None:
        """The sequence owned here gives its memory back."""
        holding = self.inst.seat.holding
        assert holding is not None
        seq = self.inst.under(holding.epoch)
        self.inst = self.inst.release(seq.blocks).put(replace(seq, blocks=(), computed=0))
        self.queue.append(Preempted())

    def on_gather(self, writing: Writing) -> None:
        """Two-sided: the blocks are read and handed to the pair."""
        tags = tuple(self.read(writing, i) for i in range(writing.stage.count))
        if tags:
            self.posts.append(
                (writing.stage.destination.instance, self.inst.incarnation, Data(writing.stage, tags))
            )
        self._end_write(writing, True)

    def on_copied(self, writing: Writing) -> None:
        """One-sided: the next block was read here and is there."""
        self.read(writing, writing.landed)
        changed = replace(writing, landed=writing.landed + 1)
        self.inst = replace(self.inst, writes=tuple(changed if w == writing else w for w in self.inst.writes))

    def on_written(self, writing: Writing, ok: bool) -> None:
        self._end_write(writing, ok)

    def _end_write(self, writing: Writing, ok: bool) -> None:
        self.inst = replace(self.inst, writes=tuple(w for w in self.inst.writes if w != writing))
        self.queue.append(Written(writing.stage.lease, ok))

    def read(self, writing: Writing, index: int) -> tuple | None:
        """Content of the write's next block at the source."""
        position = writing.stage.first + index
        seq = self.inst.find(writing.origin)
        require(seq is not None, f"a copy read a freed block at {self.inst.name}")
        assert seq is not None
        require(seq.blocks[position] != GONE, f"a copy read a freed block at {self.inst.name}")
        tag = self.inst.pool[seq.blocks[position]].tag
        require(
            tag is not None and tag[0] != "being written",
            f"a copy read a block of {self.inst.name} under a step",
        )
        assert tag is not None
        computed = len(tag[1]) + position * self.shape.block_size
        require(
            tag == self._tag(seq, position, computed),
            f"a copy read a block of {self.inst.name} that was damaged",
        )
        return tag[1]

    def on_land(self, stage: Stage, block: int, position: int, ids: tuple) -> None:
        """A one-sided write lands in this instance's memory, whatever its seat thinks."""
        self._land(stage.lease.epoch, block, ids)

    def on_arrive(self, receiving: Receiving, tags: tuple) -> None:
        """Two-sided: the blocks come in by a posted receive."""
        held = self.inst.lease(receiving.stage.lease)
        require(held is not None, f"a receive outlived its lease at {self.inst.name}")
        assert held is not None
        for index, ids in enumerate(tags):
            self._land(receiving.stage.lease.epoch, held.blocks[receiving.stage.first + index], ids)
        changed = replace(receiving, landed=True)
        self.inst = replace(
            self.inst, receives=tuple(changed if r == receiving else r for r in self.inst.receives)
        )

    def _land(self, epoch: Epoch, block: int, ids: tuple) -> None:
        require(block != GONE, f"a write at {self.inst.name} went where no block is")
        holder = self.inst.pool[block].holder
        require(
            holder == ("lease", epoch),
            f"a write under {epoch} touched block {block} of {self.inst.name}, held by {holder}",
        )
        self.inst = self.inst.mark((block,), Block(holder, (epoch, ids)))

    def on_received(self, receiving: Receiving, ok: bool) -> None:
        self.inst = replace(self.inst, receives=tuple(r for r in self.inst.receives if r != receiving))
        stage = receiving.stage
        self.queue.append(Received(stage.lease, stage.first, stage.count, ok))

    # ---- KV and its tags

    def _tag(self, seq: Sequence, index: int, computed: int) -> tuple:
        size = self.shape.block_size
        cached = self.inst.pool[seq.blocks[index]].holder == CACHE
        origin = CACHE[1] if cached else seq.origin
        return origin, seq.tokens[index * size : min(computed, (index + 1) * size)]

    def _check_kv(self, inst: Instance, seq: Sequence, reader: str) -> None:
        written = {block for step in inst.of(seq.origin) for block in step.blocks}
        for index in range(self.shape.passed(seq.computed), -(-seq.computed // self.shape.block_size)):
            require(seq.blocks[index] != GONE, f"{reader} of {seq.epoch} at {inst.name} misses a block")
            if seq.blocks[index] in written:
                continue
            block = inst.pool[seq.blocks[index]]
            expected = self._tag(seq, index, seq.computed)
            holder = CACHE if expected[0] == CACHE[1] else ("seq", seq.origin)
            require(
                block == Block(holder, expected),
                f"{reader} of {seq.epoch} at {inst.name} read {block}, not {expected}",
            )

    # ---- effects of the seat

    def _valid(self, epoch: Epoch) -> None:
        void = self.inst.void
        require(void is None or epoch > void, f"{self.inst.name} takes {epoch}, which it was told is void")

    def _torouter(self, effect: ToRouter) -> None:
        self.posts.append((effect.router, self.inst.incarnation, effect.message))

    def _topeer(self, effect: ToPeer) -> None:
        message = effect.message
        if isinstance(message, Grant):
            held = self.inst.lease(message.lease)
            assert held is not None
            message = replace(message, block_ids=held.blocks)
        self.posts.append((effect.peer.instance, self.inst.incarnation, message))

    def _begin(self, effect: Begin) -> None:
        start = effect.start
        self._valid(start.epoch)
        tokens = (*start.context.prompt, *start.context.emitted)
        until = None if self.inst.name in self.shape.decodes else len(tokens)
        seq = Sequence(start.epoch, start.epoch, tokens, until=until)
        self.inst = replace(self.inst, sequences=(*self.inst.sequences, seq))

    def _reserving(self, effect: Reserving) -> None:
        seq = self.inst.under(effect.epoch)
        reserve = Reserve(
            effect.lease,
            self.inst.incarnation,
            effect.destination.incarnation,
            "model",
            LAYOUT,
            self.shape.table,
            Context(self.driver.prompt, seq.tokens[self.shape.prompt :]),
            effect.router,
            self.shape.one_sided,
        )
        self.posts.append((effect.destination.incarnation.instance, self.inst.incarnation, reserve))

    def _pause(self, effect: Pause) -> None:
        self.inst = self.inst.put(replace(self.inst.under(effect.epoch), paused=True))

    def _unpause(self, effect: Unpause) -> None:
        self._valid(effect.epoch)
        self.inst = self.inst.put(replace(self.inst.under(effect.was), paused=False, epoch=effect.epoch))

    def _drop(self, effect: Drop) -> None:
        gone = self.inst.under(effect.epoch)
        rest = tuple(seq for seq in self.inst.sequences if seq.origin != gone.origin)
        self.inst = replace(self.inst.release(gone.blocks), sequences=rest)

    def _lease(self, effect: Lease) -> None:
        reserve = effect.reserve
        self._valid(reserve.lease.epoch)
        allotted = self._allot_lease(reserve)
        have = 0
        if allotted is None:
            self.inst = replace(self.inst, waiting=(*self.inst.waiting, reserve))
        else:
            inst, blocks, have = allotted
            self.inst = replace(inst, held=(*inst.held, Held(reserve, blocks)))
        self.queue.append(Leased(reserve.lease, allotted is not None, have))

    def _write(self, effect: Write) -> None:
        stage, seq = effect.stage, self.inst.under(effect.epoch)
        self.inst = replace(
            self.inst, writes=(*self.inst.writes, Writing(stage, seq.origin, effect.one_sided))
        )
        if not effect.one_sided:
            self.posts.append((stage.destination.instance, self.inst.incarnation, stage))

    def _receive(self, effect: Receive) -> None:
        self.inst = replace(self.inst, receives=(*self.inst.receives, Receiving(effect.stage)))

    def _closereceive(self, effect: CloseReceive) -> None:
        closed = tuple(
            replace(r, closed=True) if r.stage.lease == effect.lease else r for r in self.inst.receives
        )
        self.inst = replace(self.inst, receives=closed)

    def _adopt(self, effect: Adopt) -> None:
        held, commit = self.inst.lease(effect.lease), effect.commit
        require(held is not None and not held.quarantined, f"{self.inst.name} adopts a lease that is over")
        assert held is not None
        known, sent = held.reserve.context.emitted, tuple(record.id for record in commit.records)
        require(
            commit.first_index <= len(known), "a commit leaves out tokens that the reservation did not tell"
        )
        overlap = known[commit.first_index :]
        require(sent[: len(overlap)] == overlap, "a commit contradicts its reservation")
        tokens = (*self.driver.prompt, *known[: commit.first_index], *sent)
        require(commit.computed == len(tokens) - 1, "a commit whose KV does not match its tokens")
        epoch = effect.lease.epoch
        self._valid(epoch)
        seq = Sequence(epoch, epoch, tokens, held.blocks, commit.computed)
        inst = self.inst
        for block in held.blocks:
            if block != GONE and inst.pool[block].holder != CACHE:
                inst = inst.mark((block,), replace(inst.pool[block], holder=("seq", epoch)))
        rest = tuple(other for other in inst.held if other != held)
        inst = replace(inst, held=rest, sequences=(*inst.sequences, seq))
        self._check_kv(inst, seq, "an adoption")
        self.inst = inst.shed(seq, self.shape.passed(seq.computed))

    def _release(self, effect: Release) -> None:
        held = self.inst.lease(effect.lease)
        if held is None:
            rest = tuple(r for r in self.inst.waiting if r.lease != effect.lease)
            require(
                len(rest) < len(self.inst.waiting), f"{self.inst.name} releases a lease that it does not have"
            )
            self.inst = replace(self.inst, waiting=rest)
            return
        require(
            not any(r.stage.lease == effect.lease for r in self.inst.receives),
            f"{self.inst.name} releases blocks that a receive may write",
        )
        rest = tuple(other for other in self.inst.held if other != held)
        self.inst = replace(self.inst.release(held.blocks), held=rest)

    def _quarantine(self, effect: Quarantine) -> None:
        held = self.inst.lease(effect.lease)
        require(held is not None, f"{self.inst.name} quarantines a lease that it does not have")
        rest = tuple(replace(h, quarantined=True) if h == held else h for h in self.inst.held)
        self.inst = replace(self.inst, held=rest)

    def _condemn(self, effect: Condemn) -> None:
        if not self.inst.apart:
            self.posts.append(("condemn", effect.writer))

    def _timer(self, effect: Timer) -> None:
        self.inst = replace(self.inst, timers=self.inst.timers | {(effect.clock, effect.lease)})
