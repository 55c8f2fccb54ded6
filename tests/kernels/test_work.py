"""Items cover every query and key exactly once, and are of about equal size."""

import numpy as np
import pytest
import torch

from penstock.kernels.paged import SharedPrefix
from penstock.kernels.work import LEAST_SPLIT, HostWork, chunk_work, decode_work, padded_tables, shared_work


def keys_of(work: HostWork, queries: int) -> list[list[tuple[int, int]]]:
    """For each query the ranges of keys of its items, by way of its parts."""
    rows: dict[int, tuple[int, int]] = {}
    for first_query, count, _, _, first, last, out in work.items.tolist():
        for i in range(count):
            assert out + i not in rows, "no row is written twice"
            rows[out + i] = (first, last)
            assert 0 <= first_query + i < queries
    assert sorted(rows) == list(range(work.parts))
    return [[rows[first + i * step] for i in range(count)] for first, step, count in work.spans.tolist()]


def assert_whole(ranges: list[tuple[int, int]], first: int, end: int) -> None:
    at = first
    for begin, last in ranges:
        assert begin == at and last > begin
        at = last
    assert at == end


@pytest.mark.parametrize("seed", range(20))
def test_decode_items_cover_the_keys_and_stay_below_their_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, kv_heads = int(rng.integers(1, 40)), int(rng.integers(1, 9))
    firsts = rng.integers(0, 500, n)
    ends = firsts + rng.integers(1, 6000, n)
    programs = int(rng.integers(1, 1200))
    work = decode_work(firsts, ends, 64, kv_heads, programs)
    for ranges, first, end in zip(keys_of(work, n), firsts, ends, strict=True):
        assert_whole(ranges, first, end)
    assert len(work.items) <= n + programs / kv_heads
    lengths = work.items[:, 5] - work.items[:, 4]
    fair = (ends - firsts).sum() * kv_heads / programs
    assert lengths.max() <= max(fair, LEAST_SPLIT) + 64


def test_shared_items_cover_the_prefix_of_each_group() -> None:
    groups = (SharedPrefix(1, 7, 1000), SharedPrefix(9, 2, 130))
    work = shared_work(groups, 12, tile=3, keys=32, kv_heads=2, programs=16)
    ranges = keys_of(work, 12)
    for row in range(12):
        if 1 <= row < 8:
            assert_whole(ranges[row], 0, 1000)
        elif 9 <= row < 11:
            assert_whole(ranges[row], 0, 130)
        else:
            assert ranges[row] == []
    assert len(shared_work((), 3, 4, 32, 2, 16).items) == 0


@pytest.mark.parametrize("window", [None, 1, 50])
def test_chunk_items_cover_the_queries_with_all_that_they_see_longest_first(window: int | None) -> None:
    starts, counts = [0, 100, 7], [70, 33, 1]
    items = chunk_work(starts, counts, window, tile=16).items.tolist()
    rows = sorted(row for first, count, *_ in items for row in range(first, first + count))
    assert rows == list(range(sum(counts)))
    firsts = np.cumsum(counts) - counts
    for first_query, count, position, sequence, first, last, out in items:
        assert out == first_query and count <= 16
        assert position == starts[sequence] + first_query - firsts[sequence]
        assert last == position + count
        assert first == (0 if window is None else max(0, position - window + 1))
    lengths = [last - first for *_, first, last, _ in items]
    assert lengths == sorted(lengths, reverse=True)


def test_uploaded_parts_are_aligned_and_whole() -> None:
    work = decode_work(np.array([0, 3, 0]), np.array([700, 5, 1]), 64, 2, 12)
    tables = np.arange(15, dtype=np.int32).reshape(3, 5)
    uploaded = work.upload(tables, torch.device("cpu"))
    for found, given in zip(uploaded[:3], (tables, work.items, work.spans), strict=True):
        assert np.array_equal(found.numpy(), given)
        assert (found.data_ptr() - uploaded.tables.data_ptr()) % 16 == 0
    assert uploaded.parts == work.parts


def test_tables_are_padded() -> None:
    tables = padded_tables([np.array([3, 1]), np.array([5, 6, 7]), np.array([], dtype=np.int64)])
    assert tables.tolist() == [[3, 1, 0], [5, 6, 7], [0, 0, 0]]
