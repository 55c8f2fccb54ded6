"""Two instances joined by a torch.distributed process group of their own: gloo between CPUs, NCCL between GPUs.

Scattered blocks are gathered into staging, sent as few large messages and scattered on arrival; while one message is
on the wire the next is packed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import torch
from torch.distributed import Work, is_nccl_available

from .cache import BlockStore
from .transport import ALL_LAYERS, PeerLost

LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 8 << 20
MESSAGE_BLOCKS = 32
SLOTS = 4
"""Messages under way at once, in staging of SLOTS * MESSAGE_BYTES at most. Of the sizes tried the fastest on gloo."""

c10d: Any = torch.distributed  # its stubs lack the stores, and most methods of the backends
Store = Any
Group = Any
Result = TypeVar("Result")


class Rendezvous:
    """The store where an instance's pairs meet: one TCP server, listening on `host` alone.

    It authenticates nobody, so nothing read from it is trusted beyond where to connect.
    """

    def __init__(self, host: str = LOOPBACK):
        """OSError where `host` is no address of this machine."""
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        # Without a socket of ours the server would listen on all interfaces. It owns the descriptor from here on.
        self._store: Store | None = c10d.TCPStore(
            *self.address, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def close(self) -> None:
        """Stop listening. Pairs that are open stay so. Idempotent."""
        self._store = None


class Pair:
    """One end of a connection between two instances, for blocks in either direction; used by one thread.

    Any error is `PeerLost`, and closes it for good: torch.distributed cannot use a group after a timeout.
    """

    def __init__(self, group: Group, rank: int, timeout_s: float):
        self._group: Group | None = group
        self._peer = 1 - rank
        self._timeout_s = timeout_s
        self._staging: Staging | None = None
        self._sequence = 0

    @classmethod
    def open(
        cls,
        store_address: tuple[str, int],
        gid: str,
        rank: int,
        timeout_s: float,
        backend: str = "gloo",
        host: str = LOOPBACK,
    ) -> Pair:
        """Meet the other rank (0 or 1) of `gid` at a `Rendezvous`; a `gid` serves one pair, once.

        Blocks until both are there. `timeout_s` bounds this and every later call; `host` is the own address that
        gloo listens on. PeerLost where the other does not come, ValueError where this torch lacks `backend`.
        """
        assert rank in (0, 1)
        if backend not in GROUPS:
            raise ValueError(f"KV moves over {' or '.join(GROUPS)} with this torch, not over {backend!r}")
        # Ends that would cut a copy into other messages never meet.
        prefix = f"{gid}/{MESSAGE_BYTES}/{MESSAGE_BLOCKS}"

        def meet() -> Group:
            # The store's own retries would log a stack trace for every peer that is gone.
            socket.create_connection(store_address, timeout_s).close()
            store = c10d.TCPStore(*store_address, timeout=_seconds(timeout_s), wait_for_workers=False)
            return GROUPS[backend](c10d.PrefixStore(prefix, store), rank, 2, timeout_s, host)

        try:
            return cls(_bounded(meet, timeout_s), rank, timeout_s)
        except (RuntimeError, OSError) as error:
            raise PeerLost(f"no peer for {gid} at {store_address[0]}:{store_address[1]}: {error}") from error

    def send(self, cache: BlockStore, block_ids: Sequence[int], layers: slice = ALL_LAYERS) -> None:
        """See `TwoSided.send`."""
        with self._call() as (group, deadline):
            under_way: deque[Work] = deque()
            for message in self._messages(cache, block_ids, layers):
                if len(under_way) == SLOTS:
                    _finish(under_way.popleft(), deadline)
                cache.gather(message.block_ids, layers, out=message.staging)
                under_way.append(group.send([message.staging], self._peer, message.tag))
            for work in under_way:
                _finish(work, deadline)

    def receive(self, cache: BlockStore, block_ids: Sequence[int], layers: slice = ALL_LAYERS) -> None:
        """See `TwoSided.receive`."""
        with self._call() as (group, deadline):
            messages = self._messages(cache, block_ids, layers)

            def post(count: int) -> list[tuple[Message, Work]]:
                return [(m, group.recv([m.staging], self._peer, m.tag)) for m in islice(messages, count)]

            posted = deque(post(SLOTS))
            while posted:
                message, work = posted.popleft()
                _finish(work, deadline)
                cache.scatter(message.block_ids, message.staging, layers)
                posted.extend(post(1))
            if cache.device.type == "cuda":
                torch.cuda.current_stream(cache.device).synchronize()

    def close(self) -> None:
        """See `TwoSided.close`."""
        if self._group is not None:
            self._group.abort()  # NCCL would wait for ever for what a dead peer left undone
        self._group = None
        self._staging = None

    @contextmanager
    def _call(self) -> Iterator[tuple[Group, float]]:
        """The group, and the time by which the call has to end; an error within closes the pair."""
        if self._group is None:
            raise PeerLost("this pair is closed")
        try:
            yield self._group, time.monotonic() + self._timeout_s
        except RuntimeError as error:
            self.close()
            raise PeerLost(str(error)) from error

    def _messages(self, cache: BlockStore, block_ids: Sequence[int], layers: slice) -> Iterator[Message]:
        """Cut a copy into messages. Both ends cut alike: the cut follows from the number of blocks and the layout."""
        block_bytes = cache.staging_bytes(1, layers)
        step = max(1, min(MESSAGE_BLOCKS, MESSAGE_BYTES // block_bytes))
        if self._staging is None or not self._staging.fits(cache, step * block_bytes):
            self._staging = Staging(cache, step * block_bytes)
        for number, start in enumerate(range(0, len(block_ids), step)):
            ids = block_ids[start : start + step]
            room = self._staging.room(number % SLOTS, len(ids), layers)
            yield Message(ids, room, self._next_tag(len(ids) * block_bytes))

    def _next_tag(self, size_bytes: int) -> int:
        """A message's tag says its place and its size, so that ends which disagree never match, and both time out.

        (A message longer than the receive that it meets would end the process.)
        """
        self._sequence += 1
        return crc32(f"{self._sequence} {size_bytes}".encode()) >> 1


class Staging:
    """What messages to and from one cache pass through: SLOTS rooms, kept between calls, for new pages are slow."""

    def __init__(self, cache: BlockStore, slot_bytes: int):
        self._cache = cache
        self._slots = torch.zeros(SLOTS, slot_bytes, dtype=torch.uint8, device=cache.device).unbind()
        self._rooms: dict[tuple[int, int, int], torch.Tensor] = {}

    def fits(self, cache: BlockStore, slot_bytes: int) -> bool:
        return cache is self._cache and slot_bytes <= len(self._slots[0])

    def room(self, slot: int, blocks: int, layers: slice) -> torch.Tensor:
        """A slot as `[layers, 2, blocks, block_size, heads, dim]`."""
        key = slot, blocks, self._cache.staging_bytes(blocks, layers)
        if key not in self._rooms:
            room = self._slots[slot][: key[-1]]
            self._rooms[key] = self._cache.from_bytes(room, blocks, layers)
        return self._rooms[key]


class Message(NamedTuple):
    """Some blocks of a copy, and the room in staging that they pass through."""

    block_ids: Sequence[int]
    staging: torch.Tensor
    tag: int


def _gloo(store: Store, rank: int, size: int, timeout_s: float, host: str) -> Group:
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host, lazy_init=False)]
    options._threads = 1  # they run collectives; sends and receives belong to the device's own thread
    options._timeout = _seconds(timeout_s)
    return c10d.ProcessGroupGloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, timeout_s: float, host: str) -> Group:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = _seconds(timeout_s)
    return c10d.ProcessGroupNCCL(store, rank, size, options)


GROUPS = {"gloo": _gloo} | ({"nccl": _nccl} if is_nccl_available() else {})


def _finish(work: Work, deadline: float) -> None:
    """Wait for a message to be out, or in; RuntimeError at the deadline."""
    work.wait(_seconds(max(0.001, deadline - time.monotonic())))


def _seconds(duration_s: float) -> timedelta:
    return timedelta(seconds=duration_s)


def _bounded(function: Callable[[], Result], timeout_s: float) -> Result:
    """Call `function` in a thread, and leave it behind if it takes longer: PeerLost.

    A store whose process hangs answers no connection and heeds no timeout; the thread ends when that process does.
    """
    outcome: Future[Result] = Future()

    def call() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001  handed to the caller
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True, name="pair-open").start()
    try:
        return outcome.result(timeout_s)
    except TimeoutError as error:
        raise PeerLost(f"no answer in {timeout_s:g} s") from error
