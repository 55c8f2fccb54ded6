"""Runs steps: from block tables and token ids to sampled tokens."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from ..handover.values import Logprobs
from ..kernels.device import upload
from .cache import BlockStore
from .checkpoint import ModelSpec, read_checkpoint
from .config import EngineConfig
from .layout import CacheLayout
from .logprobs import logprobs_of
from .memory import SharedMemory
from .parallel import Ranks
from .rank import Place, RankModel
from .sampler import sample
from .step import Logbook, SampleSpec, StepItem

__all__ = ["Runner", "SampleSpec", "StepItem", "choose_device", "choose_dtype", "choose_layout"]

LOGITS_ROWS = 64
"""Logits of so many tokens of a prompt are computed at once, at most."""


def choose_device(config: EngineConfig) -> torch.device:
    """The device that `config` means; ValueError where it asks for a GPU and there is none."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("engine.device is cuda, but this machine has no usable GPU")
    return torch.device("cpu" if config.device == "cpu" or not available else "cuda")


def choose_dtype(config: EngineConfig, device: torch.device) -> str:
    """The dtype's name that `config` means on `device`."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device.type == "cpu" else "bfloat16"


def choose_layout(config: EngineConfig, spec: ModelSpec, dtype: str) -> CacheLayout:
    """The KV cache of the whole model that `config` asks for.

    ValueError where its memory holds no block, or this machine has not as much.
    """
    spec.share(config.tensor_parallel)
    blocks = config.block_count(spec.block_bytes(config.block_size, dtype, config.tensor_parallel))
    layout = spec.cache_layout(blocks, config.block_size, dtype)
    on_cpu = choose_device(config).type == "cpu"
    asked = config.host_kv_bytes + (memory_bytes(layout, config.tensor_parallel) if on_cpu else 0)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if asked > have:
        names = "engine.kv_blocks, kv_bytes and host_kv_bytes"
        raise ValueError(f"{names} ask for {asked} bytes of memory, and this machine has {have}")
    return layout


def memory_bytes(layout: CacheLayout, ranks: int) -> int:
    """Of the caches of all ranks of an instance, which lie one after the other."""
    return layout.share(ranks).total_bytes * ranks


class Runner:
    """One model on one device, or on several ranks, with its KV cache. Not for several threads at once."""

    def __init__(
        self,
        config: EngineConfig,
        spec: ModelSpec | None = None,
        memory: SharedMemory | None = None,
        *,
        decode_graphs: bool = False,
    ) -> None:
        """Loads the checkpoint of `config`. `memory`, of `memory_bytes`, is for the KV cache (CPU only).

        With `decode_graphs`, on one GPU alone, steps without chunks are replayed as CUDA graphs, recorded here.

        Raises ValueError for a checkpoint that cannot be served.
        """
        torch.set_num_threads(config.threads)
        self.spec = spec or read_checkpoint(config.folder)
        self.device = choose_device(config)
        dtype = choose_dtype(config, self.device)
        self.layout = choose_layout(config, self.spec, dtype)
        ranks = config.tensor_parallel
        place = Place(0, ranks, self.device.type, dtype)
        self._memory: SharedMemory | None = None
        if memory is None and ranks > 1 and self.device.type == "cpu":
            memory = self._memory = SharedMemory.create(memory_bytes(self.layout, ranks))
        self._ranks = Ranks(config, self.spec, self.layout, place, memory) if ranks > 1 else None
        rank = (
            self._ranks.own if self._ranks else RankModel(config, self.spec, self.layout, place, memory, None)
        )
        self.cache: BlockStore = self._ranks.cache if self._ranks else rank.cache
        """Of the whole model."""
        if decode_graphs:
            assert self._ranks is None, "graphs are recorded of one rank"
            rank.record_graphs()
        self._model = rank.model
        self._forward = self._ranks.forward if self._ranks else rank.forward

    @property
    def ranked(self) -> bool:
        """Whether other processes take part in every step."""
        return self._ranks is not None

    @property
    def alive(self) -> bool:
        """No rank has ended."""
        return self._ranks is None or self._ranks.alive

    def close(self) -> None:
        """End the other ranks. Idempotent."""
        if self._ranks is not None:
            self._ranks.close()
        if self._memory is not None:
            self._memory.close()

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[int | None]:
        """One forward pass over `items`; their keys and values are in the cache when it returns.

        Returns for each item the sampled token, None where it asked for none, and fills in the items' `log`.
        """
        if not items:
            return []
        order = sorted(range(len(items)), key=lambda index: len(items[index].tokens) > 1)
        ordered = [items[index] for index in order]
        hidden = self._forward(ordered)
        tokens: list[int | None] = [None] * len(items)
        ends = np.cumsum([len(item.tokens) for item in ordered]) - 1
        for item, end in zip(ordered, ends, strict=True):
            if item.log is not None and item.log.known:
                self._tell_known(item.log, hidden[end + 1 - len(item.tokens) :])
        wanted = [(index, int(end)) for index, end in zip(order, ends, strict=True) if items[index].sample]
        if wanted:
            rows = upload(np.array([end for _, end in wanted]), self.device)
            drawn = self._draw([items[index] for index, _ in wanted], hidden.index_select(0, rows))
            for (index, _), token in zip(wanted, drawn, strict=True):
                tokens[index] = token
        return tokens

    def _draw(self, items: Sequence[StepItem], hidden: torch.Tensor) -> list[int]:
        """A token after each row of `hidden`."""
        logits = self._model.logits(hidden)
        logs = [(row, log) for row, item in enumerate(items) if (log := item.log) is not None]
        told = [(row, log, log.drawn_top) for row, log in logs if log.drawn_top is not None]
        untouched = logits[[row for row, _, _ in told]] if told else logits
        tokens = sample(logits, [spec for item in items if (spec := item.sample)])
        if told:
            logprobs = logprobs_of(
                untouched, [tokens[row] for row, _, _ in told], [top for _, _, top in told]
            )
            for (_, log, _), of_drawn in zip(told, logprobs, strict=True):
                log.of_drawn = of_drawn
        return tokens

    def _tell_known(self, log: Logbook, hidden: torch.Tensor) -> None:
        """Fill in what is wanted of known tokens, which follow the first rows of `hidden`."""
        of_known: list[Logprobs] = []
        for first in range(0, len(log.known), LOGITS_ROWS):
            tokens = log.known[first : first + LOGITS_ROWS]
            logits = self._model.logits(hidden[first : first + len(tokens)])
            of_known += logprobs_of(logits, tokens, [log.known_top] * len(tokens))
        log.of_known = tuple(of_known)
