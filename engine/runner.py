"""Runs steps: from block tables and token ids to sampled tokens."""

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.device import upload
from ..kernels.paged import PagedBatch
from .cache import KVCache
from .checkpoint import ModelSpec, read_checkpoint
from .config import EngineConfig
from .layers import StepInputs, rope_frequencies, rotations
from .layout import CacheLayout
from .model import Model
from .sampler import sample
from .step import SampleSpec, StepItem
from .weights import load_weights

__all__ = ["Runner", "SampleSpec", "StepItem", "choose_device", "choose_dtype", "choose_layout"]


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
    """The KV cache that `config` asks for; ValueError where its memory holds no block."""
    blocks = config.block_count(spec.block_bytes(config.block_size, dtype))
    return spec.cache_layout(blocks, config.block_size, dtype)


class Runner:
    """One model on one device with its KV cache. Not for several threads at once."""

    def __init__(
        self, config: EngineConfig, spec: ModelSpec | None = None, buffer: memoryview | None = None
    ) -> None:
        """Loads the checkpoint of `config`. `buffer` is memory for the KV cache, as in `KVCache`.

        Raises ValueError for a checkpoint that cannot be served.
        """
        torch.set_num_threads(config.threads)
        self.spec = spec or read_checkpoint(config.folder)
        self.device = choose_device(config)
        dtype = choose_dtype(config, self.device)
        self.layout = choose_layout(config, self.spec, dtype)
        self.cache = KVCache(self.layout, self.device, buffer)
        weights = load_weights(config.folder, self.spec, getattr(torch, dtype), self.device)
        self._model = Model(self.spec, weights)
        self._frequencies = rope_frequencies(self.spec.rope, self.spec.head_dim).to(self.device)
        self._windows = set(self.spec.windows)

    @torch.inference_mode()
    def step(self, items: Sequence[StepItem]) -> list[int | None]:
        """One forward pass over `items`; their keys and values are in the cache when it returns.

        Returns for each item the sampled token, None where it asked for none.
        """
        if not items:
            return []
        order = sorted(range(len(items)), key=lambda index: len(items[index].tokens) > 1)
        ordered = [items[index] for index in order]
        hidden = self._model.forward(self._inputs(ordered), self.cache)
        tokens: list[int | None] = [None] * len(items)
        ends = np.cumsum([len(item.tokens) for item in ordered]) - 1
        wanted = [(index, int(end)) for index, end in zip(order, ends, strict=True) if items[index].sample]
        if wanted:
            rows = upload(np.array([end for _, end in wanted]), self.device)
            logits = self._model.logits(hidden.index_select(0, rows))
            specs = [spec for index, _ in wanted if (spec := items[index].sample)]
            for (index, _), token in zip(wanted, sample(logits, specs), strict=True):
                tokens[index] = token
        return tokens

    def _inputs(self, items: Sequence[StepItem]) -> StepInputs:
        tables = [np.asarray(item.block_table, dtype=np.int64) for item in items]
        starts = [item.start for item in items]
        counts = [len(item.tokens) for item in items]
        slots, positions = self._places(tables, starts, counts)
        decodes = sum(count == 1 for count in counts)

        def batches(part: slice) -> dict[int | None, PagedBatch]:
            size, sequences = self.layout.block_size, (tables[part], starts[part], counts[part])
            return {window: PagedBatch(*sequences, size, window, self.device) for window in self._windows}

        return StepInputs(
            tokens=upload(np.array([token for item in items for token in item.tokens]), self.device),
            rotations=rotations(positions, self._frequencies, self.spec.rope.attention_factor),
            slots=slots,
            decodes=batches(slice(decodes)),
            chunks=batches(slice(decodes, None)),
        )

    def _places(
        self, tables: list[np.ndarray], starts: list[int], counts: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache slots and the positions of all fed tokens, each [n]."""
        size = self.layout.block_size
        positions = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        slots = [
            table[places // size] * size + places % size
            for table, places in zip(tables, positions, strict=True)
        ]
        return upload(np.concatenate(slots), self.device), upload(np.concatenate(positions), self.device)
