"""Step items to the tensors that a forward pass takes."""

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.device import upload
from ..kernels.paged import PagedBatch
from .checkpoint import ModelSpec
from .layers import StepInputs
from .rotations import Rotations
from .step import StepItem


class InputBuilder:
    """What of a step's inputs is the same in every step."""

    def __init__(self, spec: ModelSpec, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._rotations = Rotations(spec.rope, spec.head_dim, device)
        self._windows = set(spec.windows)

    def build(self, items: Sequence[StepItem]) -> StepInputs:
        """`items` stand in the order of a step: those of one token first."""
        tables = [np.asarray(item.block_table, dtype=np.int64) for item in items]
        starts = [item.start for item in items]
        counts = [len(item.tokens) for item in items]
        slots, positions = self._places(tables, starts, counts)
        decodes = sum(count == 1 for count in counts)

        def batches(part: slice) -> dict[int | None, PagedBatch]:
            size, sequences = self._block_size, (tables[part], starts[part], counts[part])
            return {window: PagedBatch(*sequences, size, window, self._device) for window in self._windows}

        return StepInputs(
            tokens=upload(np.array([token for item in items for token in item.tokens]), self._device),
            rotations=self._rotations.at(positions, max(map(sum, zip(starts, counts, strict=True)))),
            slots=slots,
            decodes=batches(slice(decodes)),
            chunks=batches(slice(decodes, None)),
        )

    def _places(
        self, tables: list[np.ndarray], starts: list[int], counts: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache slots and the positions of all fed tokens, each [n]."""
        size, fed = self._block_size, np.array(counts)
        if len(counts) == sum(counts):  # decodes alone
            ends = [int(table[start // size]) for table, start in zip(tables, starts, strict=True)]
            positions = np.array(starts)
            slots = np.array(ends) * size + positions % size
            return upload(slots, self._device), upload(positions, self._device)
        before = np.cumsum(fed) - fed
        positions = np.arange(fed.sum()) + np.repeat(np.array(starts) - before, fed)
        lengths = [len(table) for table in tables]
        firsts = np.cumsum([0, *lengths[:-1]])  # where each table begins among all of them
        blocks = np.concatenate(tables)[np.repeat(firsts, fed) + positions // size]
        return upload(blocks * size + positions % size, self._device), upload(positions, self._device)
