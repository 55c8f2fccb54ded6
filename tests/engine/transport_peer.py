"""The other process of the transport tests: it has a cache and one pair at a time, and makes the calls it is told."""

import hashlib
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import torch

from penstock.engine.cache import KVCache
from penstock.engine.layout import CacheLayout
from penstock.engine.local import LocalWindow, WindowDescriptor
from penstock.engine.memory import SharedMemory
from penstock.engine.pair import Pair, Rendezvous
from penstock.engine.transport import PeerLost


def layout(dtype: str) -> CacheLayout:
    return CacheLayout(layers=3, blocks=300, block_size=4, kv_heads=2, head_dim=8, dtype=dtype)


def fill(cache: KVCache, seed: int) -> None:
    cache.buffer.random_(generator=torch.Generator().manual_seed(seed))


def digest(cache: KVCache) -> str:
    return hashlib.sha256(cache.buffer.numpy()).hexdigest()


class PeerProcess:
    """A `Peer` in a process of its own: `ask` begins a call there, `answer` waits for its end."""

    def __init__(self, dtype: str):
        # Forked from a server that has imported torch, so that a process starts in milliseconds.
        spawn = multiprocessing.get_context("forkserver")
        spawn.set_forkserver_preload(["penstock.engine.local", "penstock.engine.pair"])
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, dtype), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, name: str, *arguments: object) -> None:
        self.pipe.send((name, arguments))

    def answer(self) -> tuple[str, Any]:
        return self.pipe.recv()

    def call(self, name: str, *arguments: object) -> Any:
        self.ask(name, *arguments)
        outcome, value = self.answer()
        assert outcome == "done", value
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def serve(pipe: Connection, dtype: str) -> None:
    torch.set_num_threads(1)
    peer = Peer(dtype)
    while True:
        name, arguments = pipe.recv()
        try:
            pipe.send(("done", getattr(peer, name)(*arguments)))
        except PeerLost as error:
            pipe.send(("lost", str(error)))


class Peer:
    def __init__(self, dtype: str):
        self.layout = layout(dtype)
        self.memory = SharedMemory.create(self.layout.total_bytes)
        self.cache = KVCache(self.layout, torch.device("cpu"), self.memory.buffer)
        self.rendezvous = Rendezvous()

    def address(self) -> tuple[str, int]:
        return self.rendezvous.address

    def fill(self, seed: int) -> None:
        fill(self.cache, seed)

    def digest(self) -> str:
        return digest(self.cache)

    def open(self, address: tuple[str, int], gid: str, rank: int, timeout_s: float) -> None:
        self.pair = Pair.open(address, gid, rank, timeout_s)

    def send(self, ids: list[int], layers: list[int]) -> None:
        self.pair.send(self.cache, ids, slice(*layers))

    def receive(self, ids: list[int], layers: list[int]) -> None:
        self.pair.receive(self.cache, ids, slice(*layers))

    def receive_up_to_signal(self, ids: list[int], number: int) -> None:
        """Receive, and get a signal when the second message has arrived."""
        arrived = []

        class Falling(KVCache):
            def scatter(self, *arguments, **options) -> None:
                arrived.append(1)
                if len(arrived) == 2:
                    os.kill(os.getpid(), number)
                super().scatter(*arguments, **options)

        self.pair.receive(Falling(self.layout, torch.device("cpu")), ids)

    def send_up_to_signal(self, ids: list[int], number: int) -> None:
        """Send, and get a signal instead of packing the second message."""
        packed = []

        class Falling(KVCache):
            def gather(self, *arguments, **options) -> torch.Tensor:
                packed.append(1)
                if len(packed) == 2:
                    os.kill(os.getpid(), number)
                return super().gather(*arguments, **options)

        self.pair.send(Falling(self.layout, torch.device("cpu")), ids)

    def close(self) -> None:
        self.pair.close()

    def describe(self) -> WindowDescriptor:
        return LocalWindow.describe(self.memory)

    def write(
        self, descriptor: WindowDescriptor, sources: list[int], destinations: list[int], layers: list[int]
    ) -> None:
        window = LocalWindow.attach(descriptor, self.layout)
        window.write(self.cache, sources, destinations, slice(*layers))
        window.close()
