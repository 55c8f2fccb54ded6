"""The other process of the transport tests: does what it reads from stdin, a JSON object a line, and answers so.

Run by path with a dtype. It has a cache filled from a seed, and one pair or window at a time.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict

import torch

from penstock.engine.cache import KVCache
from penstock.engine.layout import CacheLayout
from penstock.engine.local import LocalWindow, WindowDescriptor
from penstock.engine.memory import SharedMemory
from penstock.engine.pair import Pair, Rendezvous
from penstock.engine.transport import PeerLost


def layout(dtype: str) -> CacheLayout:
    return CacheLayout(layers=3, blocks=150, block_size=4, kv_heads=2, head_dim=8, dtype=dtype)


def fill(cache: KVCache, seed: int) -> None:
    cache.buffer.random_(generator=torch.Generator().manual_seed(seed))


def digest(cache: KVCache) -> str:
    return hashlib.sha256(cache.buffer.numpy()).hexdigest()


class Peer:
    def __init__(self, dtype: str):
        self.layout = layout(dtype)
        self.memory = SharedMemory.create(self.layout.total_bytes)
        self.cache = KVCache(self.layout, torch.device("cpu"), self.memory.buffer)
        self.rendezvous = Rendezvous()

    def address(self) -> list:
        return list(self.rendezvous.address)

    def fill(self, seed: int) -> None:
        fill(self.cache, seed)

    def digest(self) -> str:
        return digest(self.cache)

    def open(self, address: list, gid: str, rank: int, timeout_s: float) -> None:
        self.pair = Pair.open((address[0], address[1]), gid, rank, timeout_s)

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

    def describe(self) -> dict:
        return asdict(LocalWindow.describe(self.memory))

    def write(self, descriptor: dict, sources: list[int], destinations: list[int], layers: list[int]) -> None:
        window = LocalWindow.attach(WindowDescriptor(**descriptor), self.layout)
        window.write(self.cache, sources, destinations, slice(*layers))
        window.close()


def main() -> None:
    torch.set_num_threads(1)
    peer = Peer(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            reply = ["done", getattr(peer, name)(*arguments)]
        except PeerLost as error:
            reply = ["lost", str(error)]
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
