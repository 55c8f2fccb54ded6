"""Which decoding sequences of a step have the same cached tokens before them, so many that reading those once pays."""

from collections.abc import Iterator, Sequence

import numpy as np

from .paged import SharedPrefix

# Bytes of a layer's keys and values that a group must save. On a CPU its sequences are no longer gathered side by side:
# that costs about as much as reading this (measured with 2 to 12 key heads of 32 to 128 dimensions on an EPYC core). On
# a GPU the step runs without a graph: a layer's launches from Python then take about as long as reading this (90 us at
# 3 TB/s; not measured).
SAVED_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


def shared_prefixes(
    tables: Sequence[np.ndarray], starts: Sequence[int], block_size: int, least_saved: int
) -> tuple[SharedPrefix, ...]:
    """Groups of neighbours whose tables begin with the same blocks, which all come before each one's own `starts`.

    Only groups that save the reading of `least_saved` tokens: all but one of its sequences read none of the prefix.
    """
    groups = []
    for first, count in _runs([int(table[0]) for table in tables]):
        most = min(starts[first : first + count]) // block_size
        if (count - 1) * most * block_size < least_saved:
            continue  # also where all of it were shared
        prefix = tables[first][:most]
        for table in tables[first + 1 : first + count]:
            differs = np.flatnonzero(prefix != table[: len(prefix)])
            prefix = prefix[: differs[0]] if differs.size else prefix
        tokens = len(prefix) * block_size
        if (count - 1) * tokens >= least_saved:
            groups.append(SharedPrefix(first, count, tokens))
    return tuple(groups)


def _runs(values: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) of equal neighbours, where there are two or more."""
    first = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or values[index] != values[first]:
            if index - first > 1:
                yield first, index - first
            first = index
