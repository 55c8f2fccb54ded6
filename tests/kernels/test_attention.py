"""Paged attention equals plain attention over the same tokens, wherever the blocks lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from penstock.kernels import attention, paged
from penstock.kernels.paged import PagedBatch, SharedPrefix, locate
from penstock.kernels.store_kv import store_kv

CPU = torch.device("cpu")
BLOCK, KV_HEADS, DIM = 16, 2, 32


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention by its definition; the queries [n, H, D] are the last of the keys' positions [m, K, D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1).double(), v.repeat_interleave(group, 1).double()
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) / DIM**0.5
    at = torch.arange(len(k) - len(q), len(k)).unsqueeze(1)
    keys = torch.arange(len(k))
    visible = (keys <= at) & (keys > at - (window or len(k)))
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v).float()


class Paged:
    """Sequences with random KV in a paged cache under tables of several kinds."""

    def __init__(self, starts: list[int], counts: list[int], window: int | None, heads: int = 4) -> None:
        torch.manual_seed(1)
        rng = np.random.default_rng(1)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        needs = [-(-end // BLOCK) for end in ends]
        # Garbage everywhere: what is read beyond a sequence shows.
        self.kv = torch.full((2, sum(needs) + 50, BLOCK, KV_HEADS, DIM), float("nan"))
        firsts = np.cumsum(needs) - needs
        runs = [np.arange(first, first + need) for first, need in zip(firsts, needs, strict=True)]
        tables = [
            run if i % 3 == 0 else rng.permutation(run) if i % 3 == 1 else np.roll(run, len(run) // 3)
            for i, run in enumerate(runs)
        ]
        self.keys = [torch.randn(end, KV_HEADS, DIM) for end in ends]
        self.values = [torch.randn(end, KV_HEADS, DIM) for end in ends]
        for table, k, v in zip(tables, self.keys, self.values, strict=True):
            at = np.arange(len(k))
            store_kv(k, v, self.kv, torch.from_numpy(table[at // BLOCK] * BLOCK + at % BLOCK))
        for table, start in zip(tables, starts, strict=True):  # what a window has passed is gone
            passed = max(0, start - window + 1) // BLOCK if window else 0
            self.kv[:, table[:passed]] = float("nan")
            table[:passed] = -1
        self.q = torch.randn(sum(counts), heads, DIM)
        self.k = torch.cat([k[start:] for k, start in zip(self.keys, starts, strict=True)])
        self.v = torch.cat([v[start:] for v, start in zip(self.values, starts, strict=True)])
        self.window = window
        self.batch = PagedBatch(tables, starts, counts, BLOCK, window, CPU)
        queries = self.q.split(counts)
        pairs = zip(queries, self.keys, self.values, strict=True)
        self.expected = torch.cat([plain(q, k, v, window) for q, k, v in pairs])


@pytest.mark.parametrize("window", [None, 1, 20, 300, 5000])
@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize("gathered", [0, 200_000, paged.GATHER_BYTES], ids=("none", "the short", "all"))
def test_decode_equals_plain_attention(
    window: int | None, heads: int, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "GATHER_BYTES", gathered)
    starts = [0, 5, 17, 600, 1040, 900, 15, 16, 300]
    case = Paged(starts, [1] * len(starts), window, heads)
    out = attention.paged_decode_attention(case.q, case.kv, case.batch)
    torch.testing.assert_close(out, case.expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 20, 300, 5000])
@pytest.mark.parametrize("tile", [512, 7])
def test_prefill_equals_plain_attention(
    window: int | None, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "TILE_TOKENS", tile)
    case = Paged([0, 0, 3, 600, 1100, 1000, 15, 280], [1, 40, 33, 20, 16, 300, 2, 23], window)
    out = attention.paged_prefill_attention(case.q, case.k, case.v, case.kv, case.batch)
    torch.testing.assert_close(out, case.expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shared", [16, 160, 600])
def test_merged_segments_equal_attention_over_all(shared: int) -> None:
    """A group of several sequences, one of a single sequence, and a sequence of none."""
    case = Paged([600, 600, 600, 321, 9], [1] * 5, None)
    common = shared // BLOCK
    tables = case.batch.tables
    for row in (1, 2):  # copies of the first sequence's prefix, in its own blocks
        tables[row][:common] = tables[0][:common]
    groups = (SharedPrefix(0, 3, common * BLOCK), SharedPrefix(3, 1, 320))
    apart = PagedBatch(tables, [600, 600, 600, 321, 9], [1] * 5, BLOCK, None, CPU)
    grouped = replace(apart, shared=groups)
    expected = attention.paged_decode_attention(case.q, case.kv, apart)
    out = attention.paged_decode_attention(case.q, case.kv, grouped)
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)


def test_the_shortest_are_gathered_together_as_long_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "GATHER_BYTES", 100 * 3)
    tables = [np.arange(n * 10, n * 10 + 10) for n in range(5)]

    def together(starts: list[int]) -> paged.Together | None:
        return PagedBatch(tables[: len(starts)], starts, [1] * len(starts), BLOCK, None, CPU).together(3)

    found = together([90, 20, 60, 30, 24])  # 21, 25 and 31 tokens: three times 31 is 93 of 100
    assert found is not None
    assert (found.rows, found.rest) == ([1, 3, 4], [0, 2])
    assert found.mask.sum(dim=-1).flatten().tolist() == [21, 31, 25]
    assert found.slots.view(3, 31)[0, [0, 20, 21, 30]].tolist() == [160, 180, 160, 160]
    assert together([60, 50]) is None and together([3]) is None


def test_one_run_is_read_in_place() -> None:
    reads = locate(np.arange(7, 27), BLOCK, 0, 310, in_place=True)
    assert reads.spans == [(7 * BLOCK, 310)] and reads.slots is None
    reads = locate(np.arange(7, 27), BLOCK, 21, 30, in_place=True)
    assert reads.spans == [(7 * BLOCK + 21, 9)]
    assert locate(np.arange(3), BLOCK, 5, 5, in_place=True) == ([], None)


def test_long_runs_are_read_in_place_and_only_the_rest_is_gathered() -> None:
    table = np.array([*range(40, 60), 3, 9, 8, *range(100, 120)])
    reads = locate(table, BLOCK, 0, len(table) * BLOCK - 6, in_place=True)
    assert reads.spans == [(40 * BLOCK, 320), (100 * BLOCK, 314)]
    assert reads.slots is not None
    assert reads.slots.tolist() == [b * BLOCK + i for b in (3, 9, 8) for i in range(BLOCK)]


def test_located_slots_are_the_positions_in_order() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        size = int(rng.integers(1, 9))
        table = rng.permutation(64)[: rng.integers(1, 20)]
        table = np.concatenate([table, np.arange(100, 100 + rng.integers(0, 5))])
        first, last = sorted(rng.integers(0, len(table) * size + 1, 2).tolist())
        reads = locate(table, size, first, last, in_place=False)
        at = np.arange(first, last)
        expected = (table[at // size] * size + at % size).tolist()
        found = [slot for start, count in reads.spans for slot in range(start, start + count)]
        assert found + ([] if reads.slots is None else reads.slots.tolist()) == expected
        assert len(reads.spans) <= 1
