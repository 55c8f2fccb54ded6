"""The work of attention kernels as lists of items of about equal size, made on the host once per step.

An item is one tile of queries against one range of a sequence's keys: one program of the kernel for each key head.
Ranges of one query that lie in several items give *parts*, which are merged by their log-sum-exp.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from .device import upload
from .paged import SharedPrefix

ITEM_FIELDS = 7
"""First query row, queries, position of the first, row of the block table, keys `[first, last)`, first output row."""
SPAN_FIELDS = 3
"""First part of a query, step to the next one, their number."""
ALIGNED = 4
"""Numbers of int32 in 16 bytes."""
LEAST_SPLIT = 256
"""Keys below which splitting a range costs more than it gains."""


class Work(NamedTuple):
    """What one launch reads: int32 tensors on the device."""

    tables: torch.Tensor
    """[sequences, width] block tables, padded with zeros"""
    items: torch.Tensor
    """[items, ITEM_FIELDS]; an item without queries is skipped"""
    spans: torch.Tensor
    """[queries, SPAN_FIELDS]; empty where every query lies in one item"""
    parts: int
    """Rows of all parts."""


class HostWork(NamedTuple):
    """`Work` before its upload."""

    items: np.ndarray
    spans: np.ndarray
    parts: int

    def upload(self, tables: np.ndarray, device: torch.device) -> Work:
        """All in one copy, each part at a multiple of `ALIGNED` numbers: kernels are compiled for aligned pointers."""
        arrays = (tables, self.items, self.spans)
        firsts = np.cumsum([0, *(-(-array.size // ALIGNED) * ALIGNED for array in arrays)])
        flat = np.empty(firsts[-1], dtype=np.int32)
        for array, first in zip(arrays, firsts, strict=False):
            flat[first : first + array.size] = array.ravel()
        on_device = upload(flat, device)
        on_tables, items, spans = (
            on_device[first : first + array.size].view(array.shape)
            for array, first in zip(arrays, firsts.tolist(), strict=False)
        )
        return Work(on_tables, items, spans, self.parts)


def padded_tables(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Block tables as one int32 array."""
    padded = np.zeros((len(tables), max(map(len, tables), default=0)), dtype=np.int32)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table)] = table
    return padded


def decode_work(firsts: np.ndarray, ends: np.ndarray, keys: int, kv_heads: int, programs: int) -> HostWork:
    """One query for each sequence, at the last of its keys `[first, end)`, which are split by tiles of `keys` so that
    about `programs` programs have as much to do each.

    There are at most `len(ends) + programs / kv_heads` items. A query may have none of its keys here.
    """
    lengths = ends - firsts
    split = _split_length(int(lengths.sum()), keys, kv_heads, programs)
    counts = -(-lengths // split)
    offsets = np.cumsum(counts) - counts
    rows = np.repeat(np.arange(len(ends)), counts)
    parts = np.arange(len(rows))
    begins = firsts[rows] + (parts - offsets[rows]) * split
    items = np.empty((len(rows), ITEM_FIELDS), dtype=np.int32)
    fields = (rows, 1, ends[rows] - 1, rows, begins, np.minimum(begins + split, ends[rows]), parts)
    for column, field in enumerate(fields):
        items[:, column] = field
    spans = np.stack([offsets, np.ones_like(counts), counts], axis=1).astype(np.int32)
    return HostWork(_longest_first(items), spans, len(rows))


def shared_work(
    groups: Sequence[SharedPrefix], queries: int, tile: int, keys: int, kv_heads: int, programs: int
) -> HostWork:
    """For each group all its queries, in tiles of `tile`, against the shared prefix, which is split as in
    `decode_work`. Some of the `queries` may be in no group."""
    total = sum(-(-group.count // tile) * group.tokens for group in groups)
    split = _split_length(total, keys, kv_heads, programs)
    items: list[tuple[int, ...]] = []
    spans = np.tile(np.array([0, 1, 0], dtype=np.int32), (queries, 1))
    parts = 0
    for first, count, tokens in groups:
        begins = range(0, tokens, split)
        members = np.arange(count)
        spans[first + members] = np.stack(
            [parts + members, np.full(count, count), np.full(count, len(begins))], axis=1
        )
        for begin in begins:
            # Positions behind the prefix: every query sees all of it.
            items.extend(
                (
                    first + row,
                    min(tile, count - row),
                    tokens,
                    first,
                    begin,
                    min(begin + split, tokens),
                    parts + row,
                )
                for row in range(0, count, tile)
            )
            parts += count
    return HostWork(np.array(items, dtype=np.int32).reshape(-1, ITEM_FIELDS), spans, parts)


def chunk_work(starts: Sequence[int], counts: Sequence[int], window: int | None, tile: int) -> HostWork:
    """Chunks of `counts` queries from positions `starts` on, in tiles of `tile` queries against all that they see."""
    items: list[tuple[int, ...]] = []
    row = 0
    for sequence, (start, count) in enumerate(zip(starts, counts, strict=True)):
        for skipped in range(0, count, tile):
            position = start + skipped
            queries = min(tile, count - skipped)
            first = 0 if window is None else max(0, position - window + 1)
            items.append(
                (row + skipped, queries, position, sequence, first, position + queries, row + skipped)
            )
        row += count
    array = np.array(items, dtype=np.int32).reshape(-1, ITEM_FIELDS)
    return HostWork(_longest_first(array), np.empty((0, SPAN_FIELDS), dtype=np.int32), row)


def _longest_first(items: np.ndarray) -> np.ndarray:
    """The items by falling number of keys: those that start last are then short."""
    return items[np.argsort(items[:, 4] - items[:, 5], kind="stable")]


def _split_length(tokens: int, keys: int, kv_heads: int, programs: int) -> int:
    """Keys of one item, a multiple of the tile `keys`."""
    fair = -(-tokens * kv_heads // programs)
    return -(-max(fair, LEAST_SPLIT) // keys) * keys
