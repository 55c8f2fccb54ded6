"""One rank of a tensor-parallel instance: its share of the model, and the process of a rank other than 0.

A rank's process is told what to do over a socket that rank 0 holds the other end of; it ends when that closes, or when
another rank does not take its part in a step.
"""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from .cache import KVCache
from .checkpoint import ModelSpec
from .config import EngineConfig
from .graphs import DecodeGraphs
from .inputs import InputBuilder
from .layout import CacheLayout
from .memory import SharedMemory
from .model import Meanwhile, Model, Reduce
from .pair import GROUPS, c10d
from .shards import Cut
from .step import StepItem
from .weights import ModelWeights, load_weights

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank works."""

    rank: int
    ranks: int
    device: str
    """`cpu`, or the GPU of rank 0; other ranks take those after it."""
    dtype: str

    @property
    def own_device(self) -> torch.device:
        device = torch.device(self.device)
        return device if device.type == "cpu" else torch.device(device.type, (device.index or 0) + self.rank)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a rank's process must know to begin."""

    config: EngineConfig
    spec: ModelSpec
    layout: CacheLayout
    """Of the whole cache."""
    place: Place
    memory: tuple[int, int] | None
    """File descriptor and size of the memory in which the ranks' caches lie one after the other."""
    meeting: tuple[str, int]
    """Address of the store where the ranks meet."""
    meeting_s: float
    step_s: float
    """Longest that ranks wait for each other within a step."""


class RankModel:
    """A rank's share of the model over its share of the cache. `ranks` may be 1."""

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        layout: CacheLayout,
        place: Place,
        memory: SharedMemory | None,
        reduce: Reduce | None,
        weights: ModelWeights | None = None,
    ) -> None:
        """`layout` and `memory` are of the whole cache, which is on CPUs the ranks' caches one after the other.

        `weights` are this rank's; without any they are read.
        """
        device, share = place.own_device, spec.share(place.ranks)
        own = layout.share(place.ranks)
        start = place.rank * own.total_bytes
        self.cache = KVCache(own, device, memory and memory.buffer[start : start + own.total_bytes])
        cut = Cut(spec, place.rank, place.ranks).layer if place.ranks > 1 else None
        dtype = getattr(torch, place.dtype)
        if weights is None:
            weights = load_weights(config.folder, spec, dtype, device, cut, head=place.rank == 0)
        self.model = Model(share, weights, reduce)
        self._inputs = InputBuilder(share, own, device)
        self._graphs: DecodeGraphs | None = None

    def record_graphs(self) -> None:
        """Replay steps without chunks as CUDA graphs from here on."""
        self._graphs = DecodeGraphs(self.model, self.cache)

    def forward(
        self,
        items: Sequence[StepItem],
        ahead: torch.Tensor | None = None,
        meanwhile: Meanwhile = lambda: None,
    ) -> torch.Tensor:
        """Feeds `items`, those of one token first; the last layer's output [n, hidden].

        `ahead` are, in order, the tokens of those that follow items of the step before; see `StepItem.follows`.
        """
        inputs = self._inputs.build(items, ahead)
        if self._graphs and self._graphs.can_run(inputs):
            return self._graphs.forward(inputs)
        return self.model.forward(inputs, self.cache, meanwhile)


class Line:
    """Values between rank 0 and a process of its own, pickled, for nobody else is at either end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, value: Any, timeout_s: float) -> None:
        """OSError where the other end is gone, or takes nothing for so long."""
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self._end.settimeout(timeout_s)
        self._end.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)

    def receive(self, timeout_s: float | None = None) -> Any:
        """EOFError where the other end is gone, OSError where it says nothing for so long (None: it may)."""
        self._end.settimeout(timeout_s)
        return pickle.loads(self._read(int.from_bytes(self._read(_LENGTH_BYTES), "little")))

    def close(self) -> None:
        self._end.close()

    def _read(self, size: int) -> bytearray:
        data, read = bytearray(size), 0
        while read < size:
            count = self._end.recv_into(memoryview(data)[read:])
            if not count:
                raise EOFError("the other end is gone")
            read += count
        return data


class Summing:
    """Sums tensors over all ranks; made before the ranks meet, since models are loaded first."""

    def __init__(self, step_s: float) -> None:
        self._options = c10d.AllreduceOptions()
        self._options.timeout = timedelta(seconds=step_s)
        self._group: Any = None

    def meet(self, address: tuple[str, int], place: Place, timeout_s: float) -> None:
        """Blocks until all ranks are there. RuntimeError where one does not come."""
        store = c10d.TCPStore(*address, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
        make = GROUPS["gloo" if place.own_device.type == "cpu" else "nccl"]
        self._group = make(c10d.PrefixStore("ranks", store), place.rank, place.ranks, timeout_s, address[0])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """In place, and returned. RuntimeError where a rank is lost or late."""
        self._group.allreduce([x], self._options).wait()
        return x

    def close(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group = None


def serve(line: Line) -> None:
    """The life of a rank's process."""
    orders: Orders = line.receive()
    torch.set_num_threads(orders.config.threads)
    if orders.place.own_device.type == "cuda":
        torch.cuda.set_device(orders.place.own_device)
    summing = Summing(orders.step_s)
    memory = None if orders.memory is None else SharedMemory(*orders.memory)
    try:
        model = RankModel(orders.config, orders.spec, orders.layout, orders.place, memory, summing)
    except ValueError as error:
        line.send(str(error), orders.step_s)
        return
    line.send("", orders.step_s)
    summing.meet(orders.meeting, orders.place, orders.meeting_s)
    with torch.inference_mode():
        while True:
            model.forward([StepItem(*item) for item in line.receive()])


def main() -> None:
    """`python -m penstock.engine.rank FD`, started by rank 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, whose end ends this process
    try:
        serve(Line(socket.socket(fileno=int(sys.argv[1]))))
    except EOFError:
        sys.exit(0)
    except (RuntimeError, OSError) as error:
        sys.exit(f"a tensor-parallel rank ends: {error}")


if __name__ == "__main__":
    main()
