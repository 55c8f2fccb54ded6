"""A group's prefix is the same blocks for all of it, comes before each one's own tokens, and saves enough."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.paged import SharedPrefix
from penstock.kernels.sharing import shared_prefixes


def tables(*rows):
    return [np.array(row, dtype=np.int64) for row in rows]


def test_neighbours_that_begin_alike_are_a_group():
    rows = tables([4, 5, 6, 1], [4, 5, 6, 2], [4, 5, 7], [8, 9], [3, 2, 1], [3, 2, 0])
    assert shared_prefixes(rows, [13, 14, 11, 5, 8, 9], 4, 1) == (
        SharedPrefix(0, 3, 8),
        SharedPrefix(4, 2, 8),
    )


def test_a_block_that_a_sequence_still_fills_is_its_own():
    assert shared_prefixes(tables([4, 5], [4, 5]), [8, 7], 4, 1) == (SharedPrefix(0, 2, 4),)
    assert shared_prefixes(tables([4, 5], [4, 5]), [8, 3], 4, 1) == ()


def test_a_group_that_saves_too_little_is_none():
    rows, starts = tables([4, 5, 1], [4, 5, 2], [4, 5, 3]), [9, 9, 9]
    assert shared_prefixes(rows, starts, 4, 16) == (SharedPrefix(0, 3, 8),)
    assert shared_prefixes(rows, starts, 4, 17) == ()
    assert shared_prefixes([], [], 4, 1) == ()


@given(st.data())
def test_whatever_the_tables_a_group_keeps_its_promises(data):
    size = data.draw(st.integers(1, 3))
    blocks = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    rows = tables(*data.draw(st.lists(blocks, max_size=8)))
    starts = [data.draw(st.integers(0, len(row) * size - 1)) for row in rows]
    least = data.draw(st.integers(1, 12))
    last = 0
    for first, count, tokens in shared_prefixes(rows, starts, size, least):
        assert first >= last and count >= 2 and tokens % size == 0 and (count - 1) * tokens >= least
        last = first + count
        members = range(first, last)
        assert len({tuple(rows[row][: tokens // size]) for row in members}) == 1
        assert all(tokens <= starts[row] for row in members)
