"""How fast the shipped transports move scattered KV blocks between two processes of this machine.

Beside them, in the same run: a blocking loopback socket that gathers and scatters like the pair does, the same socket
without packing, and a memory copy within one process. One copy after another, the ways in turn; each copy between
blocks drawn anew, and its bytes compared afterwards. A figure is the median over the rounds.
"""

from __future__ import annotations

import multiprocessing
import random
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..engine.cache import KVCache
from ..engine.layout import CacheLayout
from ..engine.local import LocalWindow
from ..engine.memory import SharedMemory
from ..engine.pair import MESSAGE_BLOCKS, Pair, Rendezvous
from .figures import Report, progress

WAYS = ("gloo", "socket", "socket_raw", "local", "memcpy")
SIZES = (1, 4, 16, 64, 256, 1024)
LAYOUT = CacheLayout(layers=4, blocks=1536, block_size=16, kv_heads=4, head_dim=128, dtype="float32")
TWO_SIDED = ("gloo", "socket", "socket_raw")
"""Ways that end at the destination; the others end where the source's call returns."""
SOCKET_BUFFER_BYTES = 4 << 20
TIMEOUT_S = 60.0
assert LAYOUT.block_bytes == 256 << 10


@dataclass(frozen=True)
class Copy:
    """One copy of `blocks` blocks; both processes draw the same ids from `seed`."""

    way: str
    blocks: int
    seed: int
    layout: CacheLayout = LAYOUT
    scattered: bool = True
    """Else the blocks are neighbours at both ends, as a sequence's are while there is room."""

    def ids(self) -> tuple[list[int], list[int]]:
        """The blocks to read at the source and those to write at the destination."""
        draw = random.Random(self.seed)
        return self._draw(draw), self._draw(draw)

    def _draw(self, draw: random.Random) -> list[int]:
        if self.scattered:
            return draw.sample(range(self.layout.blocks), self.blocks)
        start = draw.randint(0, self.layout.blocks - self.blocks)
        return list(range(start, start + self.blocks))

    @property
    def size_bytes(self) -> int:
        return self.blocks * self.layout.block_bytes

    def span(self, ids: list[int]) -> slice:
        """As many contiguous bytes, from about the first block on, for the ways that do not pack."""
        start = min(ids[0], self.layout.blocks - self.blocks) * self.layout.block_bytes
        return slice(start, start + self.size_bytes)


def measure(rounds: int, sizes: Sequence[int] = SIZES) -> Report:
    """GB/s of each way for each number of blocks, from the first gather to the last scatter."""
    if rounds < 1:
        raise ValueError(f"at least 1 round is needed, got {rounds}")
    plan = [_round(turn, sizes) for turn in range(rounds + 1)]
    speeds: dict[str, list[float]] = {}
    for copies, seconds in list(zip(plan, run(plan), strict=True))[1:]:  # the first round warms up
        for copy, taken in zip(copies, seconds, strict=True):
            speeds.setdefault(f"{copy.way}_gbps_{copy.blocks}", []).append(copy.size_bytes / taken / 1e9)
    figures = {f"{way}_gbps_{n}": statistics.median(speeds[f"{way}_gbps_{n}"]) for way in WAYS for n in sizes}
    return Report(
        command=f"bench transfer --rounds {rounds}",
        figures=figures,
        units=dict.fromkeys(figures, "GB/s"),
        spread={key: (min(speeds[key]), max(speeds[key])) for key in figures},
    )


def _round(turn: int, sizes: Sequence[int]) -> list[Copy]:
    """Every way in turn for every size, the small ones several times; each round begins with another way."""
    order = [WAYS[(turn + i) % len(WAYS)] for i in range(len(WAYS))]
    return [
        Copy(way, blocks, seed=hash((turn, blocks, again, i)))
        for blocks in sizes
        for again in range(max(1, 16 // blocks))
        for i, way in enumerate(order)
    ]


def run(plan: list[list[Copy]]) -> list[list[float]]:
    """Start both ends, and give the seconds that each copy took. All copies are between caches of one layout."""
    spawn = multiprocessing.get_context("spawn")
    results, results_end = spawn.Pipe(duplex=False)
    left, right = spawn.Pipe()
    ends = [
        spawn.Process(target=_source, args=(left, results_end, plan), daemon=True),
        spawn.Process(target=_destination, args=(right, plan), daemon=True),
    ]
    for end in ends:
        end.start()
    for connection in (results_end, left, right):
        connection.close()  # so that the end of a process reads as the end of its pipe
    seconds = []
    try:
        with progress("transfer", len(plan)) as advance:
            for _ in plan:
                seconds.append(_receive(results))
                advance(1)
        return seconds
    finally:
        for end in ends:
            end.kill()
            end.join()


class _End:
    """What both processes have: a cache in shared memory, a pair, a socket, and a pipe to tell each other."""

    def __init__(self, rank: int, peer: Connection, layout: CacheLayout):
        torch.set_num_threads(1)
        self.peer = peer
        self.layout = layout
        self.memory = SharedMemory.create(layout.total_bytes)
        self.cache = KVCache(layout, torch.device("cpu"), self.memory.buffer)
        self.cache.buffer.view(torch.int64).random_(generator=torch.Generator().manual_seed(rank))
        self.bytes = self.memory.buffer
        self.staging = self.cache.staging(MESSAGE_BLOCKS).zero_()

    def sums(self, copy: Copy, ids: list[int]) -> torch.Tensor:
        """A sum of every page that the copy read, or wrote."""
        if copy.way == "socket_raw":
            return self.cache.buffer[copy.span(ids)].view(torch.int64).view(copy.blocks, -1).sum(-1)
        words = self.cache.buffer.view(torch.int64).view(self.layout.layers, 2, self.layout.blocks, -1)
        return torch.stack([words[:, :, i].sum(-1) for i in ids])

    def messages(self, ids: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The same cut into messages as the pair makes, through one staging buffer."""
        flat = self.staging.view(torch.uint8).flatten()
        for start in range(0, len(ids), MESSAGE_BLOCKS):
            part = ids[start : start + MESSAGE_BLOCKS]
            yield part, self.cache.from_bytes(flat[: self.cache.staging_bytes(len(part))], len(part))


class _Source(_End):
    def __init__(self, peer: Connection, layout: CacheLayout):
        super().__init__(0, peer, layout)
        address, port, descriptor = _receive(peer)
        self.pair = Pair.open(address, "bench", 0, TIMEOUT_S)
        self.socket = _tuned(socket.socket())
        self.socket.connect(("127.0.0.1", port))
        self.window = LocalWindow.attach(descriptor, layout)
        self.window.write(self.cache, range(layout.blocks), range(layout.blocks))  # maps every page
        self.copied = SharedMemory.create(layout.total_bytes)  # a memory copy gets the same kind of memory
        self.copied.buffer[:] = self.bytes

    def copy(self, copy: Copy, source_ids: list[int], destination_ids: list[int]) -> None:
        if copy.way == "gloo":
            self.pair.send(self.cache, source_ids)
        elif copy.way == "local":
            self.window.write(self.cache, source_ids, destination_ids)
        elif copy.way == "memcpy":
            self.copied.buffer[copy.span(destination_ids)] = self.bytes[copy.span(source_ids)]
        elif copy.way == "socket_raw":
            self.socket.sendall(self.bytes[copy.span(source_ids)])
        else:
            for ids, staging in self.messages(source_ids):
                self.cache.gather(ids, out=staging)
                self.socket.sendall(_bytes_of(staging))


class _Destination(_End):
    def __init__(self, peer: Connection, layout: CacheLayout):
        super().__init__(1, peer, layout)
        rendezvous = Rendezvous()
        with _tuned(socket.socket()) as listener:  # an accepted socket has its listener's buffers
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            peer.send((rendezvous.address, listener.getsockname()[1], LocalWindow.describe(self.memory)))
            self.pair = Pair.open(rendezvous.address, "bench", 1, TIMEOUT_S)
            self.socket = _tuned(listener.accept()[0])

    def copy(self, copy: Copy, destination_ids: list[int]) -> None:
        if copy.way == "gloo":
            self.pair.receive(self.cache, destination_ids)
        elif copy.way == "socket_raw":
            self._fill(self.bytes[copy.span(destination_ids)])
        elif copy.way == "socket":
            for ids, staging in self.messages(destination_ids):
                self._fill(_bytes_of(staging))
                self.cache.scatter(ids, staging)

    def _fill(self, room: memoryview) -> None:
        while room:
            count = self.socket.recv_into(room)
            if not count:
                raise EOFError("the source closed its socket")
            room = room[count:]


def _source(peer: Connection, results: Connection, plan: list[list[Copy]]) -> None:
    end = _Source(peer, plan[0][0].layout)
    for copies in plan:
        # Told once a round: the process that reads it would disturb the copy that comes next.
        results.send([_timed(end, copy) for copy in copies])


def _timed(end: _Source, copy: Copy) -> float:
    """Make a copy with the destination, compare its bytes, and give the seconds that it took."""
    source_ids, destination_ids = copy.ids()
    _receive(end.peer)
    started = time.monotonic()  # one clock for all processes of the machine
    end.copy(copy, source_ids, destination_ids)
    ended = time.monotonic()
    end.peer.send(None)
    arrived, sums = _receive(end.peer)
    if copy.way != "memcpy" and not torch.equal(torch.from_numpy(sums), end.sums(copy, source_ids)):
        raise AssertionError(f"{copy} altered bytes")
    return (ended if arrived is None else arrived) - started


def _destination(peer: Connection, plan: list[list[Copy]]) -> None:
    end = _Destination(peer, plan[0][0].layout)
    for copy in chain.from_iterable(plan):
        _, destination_ids = copy.ids()
        peer.send(None)
        end.copy(copy, destination_ids)
        arrived = time.monotonic() if copy.way in TWO_SIDED else None
        _receive(peer)
        peer.send((arrived, end.sums(copy, destination_ids).numpy()))


def _tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _bytes_of(staging: torch.Tensor) -> memoryview:
    return staging.view(torch.uint8).flatten().numpy().data


def _receive(connection: Connection) -> Any:
    """The next object from another process, or an error when it has none in time."""
    if not connection.poll(TIMEOUT_S):
        raise TimeoutError(f"a process of the benchmark said nothing for {TIMEOUT_S:g} s")
    return connection.recv()
