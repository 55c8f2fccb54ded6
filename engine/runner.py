"""Runs steps: from block tables and token ids to sampled tokens."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.device import upload
from .cache import BlockStore
from .checkpoint import ModelSpec, read_checkpoint
from .config import EngineConfig
from .flight import Flight
from .graphs import recordable
from .layout import CacheLayout
from .logprobs import LogprobsOf
from .memory import SharedMemory
from .model import Meanwhile
from .parallel import Ranks
from .rank import Place, RankModel
from .sampler import sample
from .step import Logbook, SampleSpec, StepItem
from .weights import ModelWeights

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
        weights: ModelWeights | None = None,
    ) -> None:
        """Loads the checkpoint of `config`. `memory`, of `memory_bytes`, is for the KV cache (CPU only).

        `weights` of `spec`, where they are given, stand for the checkpoint's, on one rank.

        Raises ValueError for a checkpoint that cannot be served.
        """
        torch.set_num_threads(config.threads)
        self.spec = spec or read_checkpoint(config.folder)
        self.device = choose_device(config)
        self._overlap = config.overlap
        dtype = choose_dtype(config, self.device)
        self.layout = choose_layout(config, self.spec, dtype)
        ranks = config.tensor_parallel
        place = Place(0, ranks, self.device.type, dtype)
        self._memory: SharedMemory | None = None
        if memory is None and ranks > 1 and self.device.type == "cpu":
            memory = self._memory = SharedMemory.create(memory_bytes(self.layout, ranks))
        self._ranks = Ranks(config, self.spec, self.layout, place, memory) if ranks > 1 else None
        rank = (
            self._ranks.own
            if self._ranks
            else RankModel(config, self.spec, self.layout, place, memory, None, weights)
        )
        self.cache: BlockStore = self._ranks.cache if self._ranks else rank.cache
        """Of the whole model."""
        if config.decode_graphs and self._ranks is None and recordable(self.spec, self.device):
            rank.record_graphs()
        self._model = rank.model
        self._forward = self._ranks.forward if self._ranks else rank.forward

    @property
    def overlaps(self) -> bool:
        """Whether a step is to be launched before the one before it has landed; see `EngineConfig.overlap`."""
        wanted = self._overlap == "on" or (self._overlap == "auto" and self.device.type != "cpu")
        return wanted and not self.ranked

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

    def step(self, items: Sequence[StepItem]) -> list[int | None]:
        """One forward pass over `items`, from launch to landing; see `Flight.result`."""
        return self.launch(items).result() if items else []

    @torch.inference_mode()
    def launch(
        self, items: Sequence[StepItem], after: Flight | None = None, meanwhile: Meanwhile = lambda: None
    ) -> Flight:
        """Begin a step of at least one item without waiting for it on a GPU; a CPU has done it on return.

        Items that follow one of the step before take their token from `after`, its flight, on the device: it may not
        have landed. Not with several ranks, which are told the tokens. Mixtures of experts are waited for in every
        layer, whose groups the host must know (`expert_feed_forward`).

        `meanwhile` is called between the parts of every layer.
        """
        order = sorted(range(len(items)), key=lambda index: _place(items[index]))
        ordered = [items[index] for index in order]
        hidden = self._forward(ordered, self._ahead(ordered, after), meanwhile)
        ends = np.cumsum([len(item.tokens) for item in ordered]) - 1
        known = [
            (item.log, self._of_known(item.log, hidden[end + 1 - len(item.tokens) :]))
            for item, end in zip(ordered, ends, strict=True)
            if item.log is not None and item.log.known
        ]
        wanted = [(index, int(end)) for index, end in zip(order, ends, strict=True) if items[index].sample]
        rows = {index: row for row, (index, _) in enumerate(wanted)}
        if not wanted:
            return Flight(len(items), rows, None, known, [], None, self.device)
        last = hidden.index_select(0, upload(np.array([end for _, end in wanted]), self.device))
        drawn, told, of_drawn = self._draw([items[index] for index, _ in wanted], last)
        return Flight(len(items), rows, drawn, known, told, of_drawn, self.device)

    def _ahead(self, items: Sequence[StepItem], after: Flight | None) -> torch.Tensor | None:
        """The tokens, still being drawn, of the `items` that follow others; None where there are none."""
        followed = [item.follows for item in items if item.follows is not None]
        if not followed:
            return None
        assert after is not None and after.drawn is not None and self._ranks is None
        rows = np.array([after.rows[index] for index in followed])
        return after.drawn.index_select(0, upload(rows, self.device))

    def _draw(
        self, items: Sequence[StepItem], hidden: torch.Tensor
    ) -> tuple[torch.Tensor, list[Logbook], LogprobsOf | None]:
        """A token after each row of `hidden`; where something is to be told of some, and what."""
        logits = self._model.logits(hidden)
        logs = [(row, log) for row, item in enumerate(items) if (log := item.log) is not None]
        told = [(row, log, log.drawn_top) for row, log in logs if log.drawn_top is not None]
        specs = [spec for item in items if (spec := item.sample)]
        if not told:
            return sample(logits, specs), [], None
        rows = upload(np.array([row for row, _, _ in told]), self.device)
        untouched = logits.index_select(0, rows)
        tokens = sample(logits, specs)
        of_drawn = LogprobsOf(untouched, tokens.index_select(0, rows), [top for _, _, top in told])
        return tokens, [log for _, log, _ in told], of_drawn

    def _of_known(self, log: Logbook, hidden: torch.Tensor) -> list[LogprobsOf]:
        """What is wanted of known tokens, which follow the first rows of `hidden`."""
        parts: list[LogprobsOf] = []
        for first in range(0, len(log.known), LOGITS_ROWS):
            tokens = upload(np.array(log.known[first : first + LOGITS_ROWS]), self.device)
            logits = self._model.logits(hidden[first : first + len(tokens)])
            parts.append(LogprobsOf(logits, tokens, [log.known_top] * len(tokens)))
        return parts


def _place(item: StepItem) -> tuple[bool, int]:
    """Decodes before chunks, and beside those that may share a prefix."""
    return len(item.tokens) > 1, item.block_table[0]
