"""Step items to the tensors that a forward pass takes."""

from collections.abc import Sequence

import numpy as np
import torch

from ..kernels.device import upload
from ..kernels.paged import PagedBatch, SharedPrefix
from ..kernels.sharing import SAVED_BYTES, shared_prefixes
from .checkpoint import ModelSpec
from .layers import StepInputs
from .layout import CacheLayout
from .rotations import Rotations
from .step import StepItem


class InputBuilder:
    """What of a step's inputs is the same in every step."""

    def __init__(self, spec: ModelSpec, layout: CacheLayout, device: torch.device) -> None:
        """`layout` is of this rank's cache."""
        self._block_size = layout.block_size
        self._least_saved = SAVED_BYTES[device.type] // (2 * layout.page_bytes) * layout.block_size
        """Tokens whose reading a shared prefix must save."""
        self._device = device
        self._rotations = Rotations(spec.rope, spec.head_dim, device)
        self._windows = set(spec.windows)

    def build(self, items: Sequence[StepItem], ahead: torch.Tensor | None = None) -> StepInputs:
        """`items` stand in the order of a step: those of one token first, and of these equal first blocks together.

        `ahead` [those that follow an item of the step before] are their tokens, on the device.
        """
        tables = [np.asarray(item.block_table, dtype=np.int64) for item in items]
        starts = [item.start for item in items]
        counts = [len(item.tokens) for item in items]
        slots, positions = self._places(tables, starts, counts)
        decodes = sum(count == 1 for count in counts)

        shared = shared_prefixes(tables[:decodes], starts[:decodes], self._block_size, self._least_saved)

        def batches(part: slice, shared: tuple[SharedPrefix, ...] = ()) -> dict[int | None, PagedBatch]:
            size, sequences = self._block_size, (tables[part], starts[part], counts[part])
            return {
                # A window hides a prefix from those that are far beyond it.
                window: PagedBatch(*sequences, size, window, self._device, () if window else shared)
                for window in self._windows
            }

        return StepInputs(
            tokens=self._tokens(items, ahead),
            rotations=self._rotations.at(positions, max(map(sum, zip(starts, counts, strict=True)))),
            slots=slots,
            decodes=batches(slice(decodes), shared),
            chunks=batches(slice(decodes, None)),
        )

    def _tokens(self, items: Sequence[StepItem], ahead: torch.Tensor | None) -> torch.Tensor:
        tokens = upload(np.array([token for item in items for token in item.tokens]), self._device)
        if ahead is None:
            return tokens
        rows = np.array([row for row, item in enumerate(items) if item.follows is not None])
        return tokens.index_copy_(0, upload(rows, self._device), ahead)

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
