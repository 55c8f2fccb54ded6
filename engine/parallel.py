"""The ranks of a tensor-parallel instance, as rank 0 sees them: child processes that take part in every step."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from .cache import BlockStore, KVCache, ShardedCache
from .checkpoint import ModelSpec
from .config import EngineConfig
from .layout import CacheLayout
from .memory import SharedMemory
from .model import Meanwhile
from .pair import Rendezvous
from .rank import Line, Orders, Place, RankModel, Summing
from .step import StepItem

START_S = 300.0
"""Longest that ranks may take to load their shares."""
STEP_S = 20.0
"""Longest that ranks wait for each other within a step."""
END_S = 2.0
"""How long a rank that is told to end may take before it is killed."""


class RankLost(Exception):
    """A rank died or hung: the instance cannot go on."""


class Ranks:
    """Rank 0's own share, and the other ranks' processes, which do what it does. Used by one thread, but `alive`."""

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec,
        layout: CacheLayout,
        place: Place,
        memory: SharedMemory | None,
        start_s: float = START_S,
        step_s: float = STEP_S,
    ) -> None:
        """Returns when all ranks have loaded. ValueError for a model that cannot be served so, RankLost for a rank."""
        self._step_s = step_s
        self._store = Rendezvous()
        held = None if memory is None else (memory.fd, memory.size_bytes)
        orders = Orders(config, spec, layout, place, held, self._store.address, start_s, step_s)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: list[Line] = []
        self._sum = Summing(step_s)
        try:
            for rank in range(1, place.ranks):
                self._start(replace(orders, place=replace(place, rank=rank)))
            self._own = RankModel(config, spec, layout, place, memory, self._sum)
            self._cache = (
                self._own.cache if memory is None else _joined(self._own.cache, layout, memory, place)
            )
            self._await_loaded(time.monotonic() + start_s)
            self._meet(place, start_s)
        except BaseException:
            self.close()
            raise

    @property
    def cache(self) -> BlockStore:
        """All ranks' caches as one. On GPUs the own share alone: others' memory is out of reach."""
        return self._cache

    @property
    def own(self) -> RankModel:
        return self._own

    @property
    def alive(self) -> bool:
        """No process of a rank has ended."""
        return all(process.poll() is None for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """Processes of the ranks from 1 on."""
        return [process.pid for process in self._processes]

    def forward(
        self,
        items: Sequence[StepItem],
        ahead: torch.Tensor | None = None,
        meanwhile: Meanwhile = lambda: None,
    ) -> torch.Tensor:
        """As `RankModel.forward`, on all ranks, which are told tokens that the host knows. RankLost ends them all."""
        assert ahead is None, "tokens that are on one device alone do not reach the other ranks"
        plain = [(list(item.tokens), item.start, list(item.block_table)) for item in items]
        try:
            for line in self._lines:
                line.send(plain, self._step_s)
            return self._own.forward(items, meanwhile=meanwhile)
        except (RuntimeError, OSError) as error:
            lost = self._lost(error)
            self.close(end_s=0.0)
            raise lost from error

    def close(self, end_s: float = END_S) -> None:
        """End all ranks; killed where they do not end by themselves within `end_s`. Idempotent."""
        for line in self._lines:
            line.close()
        self._sum.close()
        deadline = time.monotonic() + end_s
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(END_S)
        self._store.close()

    def _start(self, orders: Orders) -> None:
        ours, theirs = socket.socketpair()
        shared = () if orders.memory is None else (orders.memory[0],)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            command = [sys.executable, "-m", "penstock.engine.rank", str(theirs.fileno())]
            process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(), *shared), env=environment, stdin=subprocess.DEVNULL
            )
        self._processes.append(process)
        self._lines.append(Line(ours))
        self._lines[-1].send(orders, END_S)

    def _await_loaded(self, deadline: float) -> None:
        for line in self._lines:
            try:
                refusal = line.receive(max(0.001, deadline - time.monotonic()))
            except (EOFError, OSError) as error:
                raise self._lost(error) from error
            if refusal:
                raise ValueError(refusal)

    def _meet(self, place: Place, start_s: float) -> None:
        try:
            self._sum.meet(self._store.address, place, start_s)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> RankLost:
        """Which rank it is, where that can be told: one that has died, or else one of those that run."""
        time.sleep(0.05)  # a process that was killed is reaped a little after its connections broke
        for rank, process in enumerate(self._processes, 1):
            if process.poll() is not None:
                code = process.returncode
                return RankLost(f"tensor-parallel rank {rank} (process {process.pid}) ended with code {code}")
        return RankLost(f"a tensor-parallel rank does not answer within {self._step_s:g} s: {error}")


def _joined(own: KVCache, layout: CacheLayout, memory: SharedMemory, place: Place) -> ShardedCache:
    """The ranks' caches, which lie in `memory` one after the other."""
    share, buffer = layout.share(place.ranks), memory.buffer
    size = share.total_bytes
    others = [
        KVCache(share, own.device, buffer[rank * size : (rank + 1) * size]) for rank in range(1, place.ranks)
    ]
    return ShardedCache(layout, [own, *others])
