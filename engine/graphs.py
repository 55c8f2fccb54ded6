"""Decode steps as CUDA graphs: launched at once, where a step of many small kernels waits for Python."""

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.paged import PagedBatch
from ..kernels.work import ITEM_FIELDS, SPAN_FIELDS, Work
from .cache import KVCache
from .checkpoint import ModelSpec
from .layers import StepInputs
from .layout import CacheLayout
from .model import Model

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""A step runs as the next larger of these; larger steps run without a graph."""


def recordable(spec: ModelSpec, device: torch.device) -> bool:
    """Whether a model's decode steps can be recorded: not those of mixtures of experts, whose host asks the device in
    every layer how the tokens were spread (`expert_feed_forward`), which cannot happen while recording."""
    return device.type == "cuda" and spec.mixture is None


class DecodeGraphs:
    """The forward pass of steps that decode only, recorded once for each of `BATCH_SIZES`."""

    def __init__(self, model: Model, cache: KVCache, sizes: Sequence[int] = BATCH_SIZES) -> None:
        """Records all graphs; nothing is written to the cache. The largest comes first: the others share its memory."""
        assert cache.device.type == "cuda"
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, PaddedDecode, torch.Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):
            padded = PaddedDecode(model.spec, cache.layout, size, cache.device)
            with torch.inference_mode():
                model.forward(
                    padded.inputs, cache
                )  # compiles the kernels, which cannot happen while recording
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    hidden = model.forward(padded.inputs, cache)
            self._recorded[size] = graph, padded, hidden

    def can_run(self, inputs: StepInputs) -> bool:
        """Whether `inputs` decode only, no more sequences than were recorded, and share no prefix."""
        chunks = any(batch.tables for batch in inputs.chunks.values())
        shared = any(batch.shared for batch in inputs.decodes.values())
        return not chunks and not shared and len(inputs.tokens) <= max(self._recorded)

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        """As `Model.forward`; what it returns is overwritten by the next step."""
        count = len(inputs.tokens)
        graph, padded, hidden = self._recorded[min(size for size in self._recorded if size >= count)]
        padded.fill(inputs)
        graph.replay()
        return hidden[:count]


class PaddedDecode:
    """Inputs of a decode step at addresses that stay, for up to `size` sequences.

    A row without a sequence has no keys to see and no slot, so that what it computes goes nowhere.
    """

    def __init__(self, spec: ModelSpec, layout: CacheLayout, size: int, device: torch.device) -> None:
        from ..kernels.attention_triton import DECODE, programs

        self._spec = spec
        self._dtype = getattr(torch, layout.dtype)
        self._work: dict[int | None, Work] = {}
        width = -(-spec.longest(layout.blocks, layout.block_size) // layout.block_size)
        items = size + programs(device) // spec.kv_heads  # the bound of `decode_work`

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        def batch(window: int | None, sequences: int) -> PagedBatch:
            tables = [np.zeros(1, dtype=np.int64)] * sequences
            return PagedBatch(tables, [0] * sequences, [1] * sequences, layout.block_size, window, device)

        windows = set(spec.windows)
        decodes = {window: batch(window, size) for window in windows}
        for window, padded in decodes.items():
            work = Work(zeros(size, width), zeros(items, ITEM_FIELDS), zeros(size, SPAN_FIELDS), items)
            self._work[window] = padded.once(DECODE, lambda work=work: work)
        self.inputs = StepInputs(
            tokens=torch.zeros(size, dtype=torch.int64, device=device),
            rotations=torch.zeros((size, spec.head_dim // 2), dtype=torch.complex64, device=device),
            slots=torch.full((size,), -1, dtype=torch.int64, device=device),
            decodes=decodes,
            chunks={window: batch(window, 0) for window in windows},
        )

    def fill(self, inputs: StepInputs) -> None:
        """Copies a step's inputs here, on the device alone."""
        from ..kernels.attention_triton import decode_items

        own, spec = self.inputs, self._spec
        _copy(own.tokens, inputs.tokens)
        _copy(own.rotations, inputs.rotations)
        _copy(own.slots, inputs.slots, padding=-1)
        for window, batch in inputs.decodes.items():
            work = decode_items(batch, spec.heads, spec.kv_heads, spec.head_dim, self._dtype)
            padded = self._work[window]
            padded.tables[: len(work.tables), : work.tables.shape[1]].copy_(work.tables)
            _copy(padded.items, work.items)
            _copy(padded.spans, work.spans)


def _copy(target: torch.Tensor, source: torch.Tensor, padding: int = 0) -> None:
    """`source` into the first rows of `target`, `padding` into the rest."""
    target[: len(source)].copy_(source)
    target[len(source) :].fill_(padding)
