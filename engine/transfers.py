"""An instance's copies: one thread does them, and one turn orders them.

A two-sided message starts only when both ends hold their turn. Whoever is refused lets its own go and tries again a
little later, so rings of instances that send to each other cannot lock.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from ..handover.config import HandoverConfig
from ..handover.effects import InstanceEvent, Received, Written
from ..handover.frames import PairOffer, PeerFrame, Turn, TurnKind
from ..handover.values import Incarnation, LeaseKey, Stage, Window
from ..policy.journal import Journal
from .cache import BlockStore
from .copy_thread import CopyThread
from .local import LocalWindow, WindowDescriptor
from .pace import Pace
from .pair import Pair, Rendezvous
from .transport import PeerLost
from .turn import TransferTurn

logger = logging.getLogger(__name__)

JITTER_S = 0.004
"""A refused sender waits up to this long, at random."""
HANG_TIMES = 5
"""A copy that takes so many times the limit of a transport operation never ends."""


@dataclass(frozen=True, slots=True)
class Promised:
    """The turn, as promised to a sender for one message."""

    sender: Incarnation
    pair: str
    sequence: int


class Transfers:
    """Copies KV to and from peers. Called in the event loop, but for an urgent `write_in_place`: from any thread."""

    def __init__(
        self,
        me: Incarnation,
        cache: BlockStore,
        config: HandoverConfig,
        host: str,
        tell: Callable[[Incarnation, PeerFrame], None],
        post: Callable[[str, InstanceEvent], None],
        stepping: Callable[[], bool],
        journal: Journal,
    ):
        self._me = me
        self._cache = cache
        self._config = config
        self._host = host
        self._tell = tell
        self._post = post
        self._journal = journal
        self._backend = "gloo" if cache.device.type == "cpu" else "nccl"
        self._rendezvous = Rendezvous(host)
        self._thread = CopyThread()
        self._pace = Pace(config.copy_share, config.lease_s / 4, stepping)
        self._turn = TransferTurn()
        self._promised: Promised | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._claim = asyncio.Lock()
        """One sender at a time asks for turns: between two tries the own turn is free for others to be granted."""
        self._queues: dict[Incarnation, asyncio.Lock] = {}
        self._answers: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._out: dict[Incarnation, tuple[str, Pair | None]] = {}
        self._in: dict[Incarnation, tuple[str, Pair]] = {}
        self._windows: dict[Incarnation, LocalWindow] = {}
        self._unreachable: set[Incarnation] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting: dict[LeaseKey, asyncio.Task[None]] = {}
        self._receives: dict[LeaseKey, set[asyncio.Task[None]]] = {}
        self._sequence = 0

    def submit(self, copy: Callable[[], None]) -> None:
        """Run a copy within this process in the transfer thread, behind what waits there. Any thread may call this.

        It rests for nobody, so nobody rests for it: one after the other would hold back handovers for ever.
        """
        self._thread.submit(copy)

    @property
    def hang(self) -> bool:
        """A copy is under way that should have ended long ago: its blocks and its turn are lost."""
        return self._thread.busy_s > HANG_TIMES * self._config.transport_s

    # ---- one-sided

    def reachable(self, peer: Incarnation) -> bool:
        """Whether writing the peer's memory in place has not failed yet."""
        return peer not in self._unreachable

    def write_in_place(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        urgent: bool,
    ) -> None:
        """Copy blocks into the destination's memory (None: it has none to share) in the transfer thread.

        `Written` is posted when that has ended. What is not `urgent` waits for its time.
        """
        asked_at = time.monotonic()
        write = partial(self._write, stage, window, tuple(source_ids), tuple(destination_ids), asked_at)
        if urgent:
            self._thread.submit(self._timed, write)
        else:
            self._spawn(self._write_in_its_time(stage, write))

    async def _write_in_its_time(self, stage: Stage, write: Callable[[], None]) -> None:
        try:
            await self._rest(stage.lease)
        except asyncio.CancelledError:
            self._post(stage.lease.session, Written(stage.lease, False))
            raise
        self._thread.submit(self._timed, write)

    def _write(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        asked_at: float,
    ) -> None:
        ok, began = False, time.monotonic()
        try:
            self._window(stage.destination, window).write(self._cache, source_ids, destination_ids)
            ok = True
            self._note_copied(stage, "in place", asked_at, began)
        except Exception as error:  # noqa: BLE001 - the copy ends here; the next one goes another way
            self._unreachable.add(stage.destination)
            logger.warning("cannot write to %s.%d in place: %r", *stage.destination, error)
        finally:
            self._post(stage.lease.session, Written(stage.lease, ok))

    def _window(self, peer: Incarnation, window: Window | None) -> LocalWindow:
        if window is None:
            raise PeerLost("it shares no memory")
        if peer not in self._windows:
            layout = replace(self._cache.layout, blocks=window.blocks)
            descriptor = WindowDescriptor(
                host=window.host, pid=window.pid, fd=window.fd, name=window.name, size_bytes=window.size_bytes
            )
            self._windows[peer] = LocalWindow.attach(descriptor, layout, window.ranks)
        return self._windows[peer]

    # ---- two-sided, sending

    def send_blocks(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        """Send header and blocks as soon as both ends hold their turn, then post `Written`.

        What is not `urgent` waits for its time.
        """
        self._spawn(self._send(stage, tuple(ids), urgent))

    async def _send(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        ok, asked_at = False, time.monotonic()
        try:
            if not urgent:
                await self._rest(stage.lease)
            async with asyncio.timeout(self._config.transport_s):
                name = await self._take_both_turns(stage.destination)
            began = time.monotonic()
            try:
                ok = await self._send_holding_turns(stage, ids, name)
                if ok:
                    self._note_copied(stage, self._backend, asked_at, began)
            finally:
                self._turn.give_back()
        except TimeoutError:
            logger.info("%s.%d did not give its turn in time", *stage.destination)
        except Exception:  # noqa: BLE001 - the copy ends here
            logger.exception("a copy to %s.%d failed", *stage.destination)
        finally:
            self._post(stage.lease.session, Written(stage.lease, ok))

    async def _take_both_turns(self, peer: Incarnation) -> str:
        """The name of the pair, once both ends hold their turn. A peer that does not answer delays no other's claim."""
        patience_s = self._config.heartbeat_s
        async with self._queues.setdefault(peer, asyncio.Lock()):
            while True:
                try:
                    async with self._claim:
                        name = await self._try_both_turns(peer, patience_s)
                        if name is not None:
                            return name
                        await asyncio.sleep(random.random() * JITTER_S)
                except (
                    TimeoutError
                ):  # it may be slow rather than gone; others go first for as long as it took
                    await asyncio.sleep(patience_s)
                    patience_s *= 2

    async def _try_both_turns(self, peer: Incarnation, patience_s: float) -> str | None:
        """The name of the pair; None where the peer refuses, TimeoutError where it does not answer."""
        await self._turn.take()
        granted = False
        try:
            async with asyncio.timeout(patience_s):
                name, granted = await self._ask(peer)
            return name if granted else None
        finally:
            if not granted:
                self._turn.give_back()

    async def _ask(self, peer: Incarnation) -> tuple[str, bool]:
        self._sequence += 1
        pair, _ = self._out.setdefault(peer, (f"{self._me.instance}.{self._me.life}/{self._sequence}", None))
        key = pair, self._sequence
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self._tell(peer, Turn(pair, self._sequence, TurnKind.ASK))
        try:
            return pair, await answer
        except asyncio.CancelledError:
            self._tell(peer, Turn(pair, key[1], TurnKind.RELEASE))
            raise
        finally:
            del self._answers[key]

    async def _send_holding_turns(self, stage: Stage, ids: Sequence[int], name: str) -> bool:
        peer, sequence, sent = stage.destination, self._sequence, False
        known, pair = self._out.get(peer, ("", None))
        try:
            if known != name:
                raise PeerLost("it died")
            if pair is None and ids:
                pair = await self._open_pair(peer, name)
            size = self._cache.staging_bytes(len(ids))
            self._tell(peer, replace(stage, pair=name, sequence=sequence, size_bytes=size))
            if pair is not None and ids:
                await self._in_thread(self._timed, partial(pair.send, self._cache, ids))
            sent = True
        except PeerLost as error:
            logger.info("the pair to %s.%d is lost: %s", *peer, error)
        finally:
            if not sent:
                self._close_out(peer, name)
                self._tell(peer, Turn(name, sequence, TurnKind.RELEASE))
        return sent

    async def _open_pair(self, peer: Incarnation, name: str) -> Pair:
        """Both ends hold their turn, so that both are free to meet."""
        host, port = self._rendezvous.address
        self._tell(peer, PairOffer(name, host, port, self._backend))
        pair = await self._open((host, port), name, 0)
        self._out[peer] = name, pair
        return pair

    async def _open(self, address: tuple[str, int], name: str, rank: int) -> Pair:
        return await self._in_thread(
            Pair.open, address, name, rank, self._config.transport_s, self._backend, self._host
        )

    # ---- two-sided, receiving

    def hear(self, sender: Incarnation, frame: Turn | PairOffer) -> None:
        """What a peer says about turns and pairs."""
        match frame:
            case Turn(pair, sequence, TurnKind.ASK):
                self._grant(Promised(sender, pair, sequence))
            case Turn(pair, sequence, TurnKind.RELEASE):
                if self._promised == Promised(sender, pair, sequence):
                    self._give_back()
            case Turn(pair, sequence, kind):
                answer = self._answers.get((pair, sequence))
                if answer is not None and not answer.done():
                    answer.set_result(kind is TurnKind.GRANT)
                elif kind is TurnKind.GRANT:
                    self._tell(sender, Turn(pair, sequence, TurnKind.RELEASE))
            case PairOffer():
                self._spawn(self._meet(sender, frame))

    def _grant(self, promised: Promised) -> None:
        free = self._turn.try_take()
        kind = TurnKind.GRANT if free else TurnKind.DENY
        if free:
            self._promised = promised
            self._expiry = asyncio.get_running_loop().call_later(self._config.transport_s, self._give_back)
        self._tell(promised.sender, Turn(promised.pair, promised.sequence, kind))

    def _give_back(self) -> None:
        if self._promised is None:
            return
        self._promised = None
        if self._expiry is not None:
            self._expiry.cancel()
        self._turn.give_back()

    async def _meet(self, sender: Incarnation, offer: PairOffer) -> None:
        if self._promised is None or (self._promised.sender, self._promised.pair) != (sender, offer.pair):
            return
        self._close_in(sender)  # a sender that makes a new pair has lost the old one
        try:
            self._in[sender] = offer.pair, await self._open((offer.host, offer.port), offer.pair, 1)
        except PeerLost as error:
            logger.info("no pair with %s.%d: %s", *sender, error)
            self._give_back()

    def receive_blocks(self, stage: Stage, ids: Sequence[int]) -> None:
        """Take the blocks that follow a header into `ids`, then post `Received`."""
        task = self._spawn(self._receive(stage, tuple(ids)))
        under_way = self._receives.setdefault(stage.lease, set())
        under_way.add(task)
        task.add_done_callback(lambda _: self._forget_receive(stage.lease, task))

    async def _receive(self, stage: Stage, ids: Sequence[int]) -> None:
        ok = False
        expected = Promised(stage.source, stage.pair, stage.sequence)
        try:
            pair = await self._pair_in(stage)
            if self._promised == expected and pair is not None and len(ids) == stage.count:
                if self._expiry is not None:
                    self._expiry.cancel()
                await self._in_thread(pair.receive, self._cache, ids)
                ok = True
        except PeerLost as error:
            logger.info("the pair with %s.%d is lost: %s", *stage.source, error)
        finally:
            if not ok:
                self._close_in(stage.source, stage.pair)
            if self._promised == expected:
                self._give_back()
            self._post(stage.lease.session, Received(stage.lease, stage.first, stage.count, ok))

    async def _pair_in(self, stage: Stage) -> Pair | None:
        """The pair, which may just be being opened in the transfer thread."""
        if self._in.get(stage.source, ("", None))[0] != stage.pair:
            await self._in_thread(lambda: None)
        name, pair = self._in.get(stage.source, ("", None))
        return pair if name == stage.pair else None

    def decline(self, stage: Stage) -> None:
        """Nobody wants the blocks of this header: break the pair, so that the sender ends at once."""
        if self._promised == Promised(stage.source, stage.pair, stage.sequence):
            if stage.count:
                self._close_in(stage.source, stage.pair)
            self._give_back()

    def close_receive(self, lease: LeaseKey) -> None:
        """End the receives under this lease and their pair; `Received` is posted when nothing writes any more.

        At once where a receive has not begun. One that has begun lasts until its sender is through, or `transport_s`
        at most: gloo waits for a message until that is there, its connection closes or the time is up, `abort` does not
        wake it, and torch.distributed tells nobody the socket. Until `Received` the seat keeps the lease's blocks.
        """
        for task in self._receives.get(lease, ()):
            self._cancel(task)

    def _forget_receive(self, lease: LeaseKey, task: asyncio.Task[None]) -> None:
        self._receives[lease].discard(task)
        if not self._receives[lease]:
            del self._receives[lease]

    # ---- both

    def _note_copied(self, stage: Stage, way: str, asked_at: float, began: float) -> None:
        self._journal.note(
            stage.lease.session,
            "copied" if stage.commit is None else "committed",
            destination=stage.destination.instance,
            way=way,
            first_block=stage.first,
            blocks=stage.count,
            bytes=stage.count * self._cache.layout.block_bytes,
            queue_s=began - asked_at,
            wire_s=time.monotonic() - began,
        )

    def forget(self, peer: Incarnation) -> None:
        """The incarnation is dead."""
        self._close_out(peer)
        self._close_in(peer)
        self._queues.pop(peer, None)
        window = self._windows.pop(peer, None)
        if window is not None:
            self._thread.submit(window.close)
        if self._promised is not None and self._promised.sender == peer:
            self._give_back()
        self._unreachable.discard(peer)

    async def close(self) -> None:
        """End all copies; returns within the transport's limit."""
        for task in self._tasks:
            self._cancel(task)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        for _, pair in [*self._in.values(), *self._out.values()]:
            if pair is not None:
                pair.close()
        for window in self._windows.values():
            window.close()
        self._rendezvous.close()

    def _close_in(self, peer: Incarnation, name: str = "") -> None:
        """Close the pair from `peer`: any, or only the one of that name."""
        if peer in self._in and name in ("", self._in[peer][0]):
            self._thread.submit(self._in.pop(peer)[1].close)

    def _close_out(self, peer: Incarnation, name: str = "") -> None:
        """Close the pair to `peer`: any, or only the one of that name."""
        if peer in self._out and name in ("", self._out[peer][0]):
            _, pair = self._out.pop(peer)
            if pair is not None:
                self._thread.submit(pair.close)

    def give_up(self, lease: LeaseKey) -> None:
        """Nobody wants the copy under this lease: where it still waits for its time, it ends at once."""
        asyncio.get_running_loop().call_soon(self._end_rest, lease)  # it may have been asked for just now

    def _end_rest(self, lease: LeaseKey) -> None:
        if lease in self._resting:
            self._resting[lease].cancel()

    async def _rest(self, lease: LeaseKey) -> None:
        """Wait for its time: however much overtakes it, a quarter of a lease's life at most."""
        task = asyncio.current_task()
        assert task is not None
        self._resting[lease] = task
        until = time.monotonic() + self._config.lease_s / 4
        try:
            while (left_s := min(self._pace.left_s, until - time.monotonic())) > 0:  # noqa: ASYNC110 - time alone ends it
                await asyncio.sleep(left_s)
        finally:
            del self._resting[lease]

    def _timed(self, copy: Callable[[], None]) -> None:
        """Copy, in the transfer thread, and rest for it afterwards."""
        began = time.monotonic()
        try:
            copy()
        finally:
            self._pace.took(time.monotonic() - began)

    async def _in_thread(self, call: Callable, *arguments: object):
        """Run in the transfer thread. A copy that has begun is waited for even when this is cancelled."""
        job: Future = self._thread.submit(call, *arguments)
        waiting = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.gather(waiting, return_exceptions=True)
            raise

    def _spawn(self, coroutine) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _cancel(task: asyncio.Task[None]) -> None:
        """Cancel a copy once it has begun: one cancelled before would answer nobody."""
        asyncio.get_running_loop().call_soon(task.cancel)
