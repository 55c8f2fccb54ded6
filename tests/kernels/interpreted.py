"""Triton kernels on the CPU, by Triton's interpreter, against their torch twins.

Run by `test_interpreted.py` in a process of its own, with TRITON_INTERPRET set before the kernels are imported.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.graphs import PaddedDecode
from penstock.engine.inputs import InputBuilder
from penstock.engine.runner import Runner, SampleSpec, StepItem
from penstock.kernels import (
    attention,
    attention_triton,
    blocks,
    blocks_triton,
    rms_norm,
    rms_norm_triton,
    rope,
    rope_triton,
    segments,
    segments_triton,
    sharing,
    silu_mul,
    silu_mul_triton,
    store_kv,
    store_kv_triton,
    work,
)
from penstock.kernels.paged import PagedBatch, SharedPrefix
from penstock.kernels.segments import Segment

CPU = torch.device("cpu")
SEEDS = range(4)
DTYPES = [torch.float32, torch.float16]


class Case:
    """A random batch over a paged cache that holds no number wherever nothing was written."""

    def __init__(self, seed: int, dtype: torch.dtype, counts: list[int], window: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.dtype = dtype
        self.kv_heads = int(self.rng.choice([1, 2, 3]))
        self.heads = self.kv_heads * int(self.rng.choice([1, 3, 4]))
        self.dim = int(self.rng.choice([16, 32, 48, 80]))
        self.block = int(self.rng.choice([1, 5, 16, 32]))
        self.counts = counts
        self.starts = [int(start) for start in self.rng.choice([0, 1, 31, 64, 170], len(counts))]
        self.window = int(self.rng.choice([1, 20, 65])) if window else None
        self.store(shared=0)

    def store(self, shared: int) -> None:
        """Random keys and values under tables whose blocks of the first `shared` tokens are the same ones."""
        ends = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        needs = [-(-end // self.block) for end in ends]
        free = self.rng.permutation(sum(needs) + 9)
        own = np.split(free[: sum(needs)], np.cumsum(needs)[:-1])
        common = shared // self.block
        self.tables = [np.concatenate([own[0][:common], table[common:]]) for table in own]
        self.kv = torch.full(
            (2, len(free), self.block, self.kv_heads, self.dim), float("nan"), dtype=self.dtype
        )
        for table, end in zip(self.tables, ends, strict=True):
            at = np.arange(end)
            slots = torch.from_numpy(table[at // self.block] * self.block + at % self.block)
            k, v = self.randn(2, end, self.kv_heads, self.dim).unbind(0)
            store_kv.store_kv(k, v, self.kv, slots)
        for table, start in zip(self.tables, self.starts, strict=True):  # what a window has passed is gone
            passed = max(0, start - self.window + 1) // self.block if self.window else 0
            self.kv[:, table[:passed]] = float("nan")
            table[:passed] = -1
        # A view as the forward pass has it: queries and keys in one tensor.
        self.q = self.randn(sum(self.counts), self.heads + self.kv_heads, self.dim)[:, : self.heads]

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape).to(self.dtype)

    def batch(self, *shared: SharedPrefix) -> PagedBatch:
        return PagedBatch(self.tables, self.starts, self.counts, self.block, self.window, CPU, shared)

    def own(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunks' own keys and values, as they lie in the cache."""
        rows = []
        for table, start, count in zip(self.tables, self.starts, self.counts, strict=True):
            at = np.arange(start, start + count)
            rows.append(table[at // self.block] * self.block + at % self.block)
        slots = torch.from_numpy(np.concatenate(rows))
        k, v = self.kv.view(2, -1, self.kv_heads, self.dim)[:, slots].unbind(0)
        return k, v


def assert_near(out: torch.Tensor, expected: torch.Tensor, computed: torch.dtype | None = None) -> None:
    half = (computed or out.dtype) == torch.float16
    torch.testing.assert_close(out, expected, atol=3e-3 if half else 3e-6, rtol=3e-3 if half else 1e-5)


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short contexts are split too, and merging takes more than one round."""
    monkeypatch.setattr(work, "LEAST_SPLIT", 16)
    monkeypatch.setattr(attention_triton, "programs", lambda device: 12)
    monkeypatch.setattr(segments_triton, "MERGE_PARTS", 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_decode(seed: int, window: bool, dtype: torch.dtype) -> None:
    case = Case(seed, dtype, [1, 1, 1], window)
    expected = attention.paged_decode_attention(case.q, case.kv, case.batch())
    assert_near(attention_triton.decode(case.q, case.kv, case.batch()), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_prefill(seed: int, window: bool, dtype: torch.dtype) -> None:
    case = Case(seed + 100, dtype, [1, 2, 70][: 1 + seed % 3], window)
    batch = case.batch()
    expected = attention.paged_prefill_attention(case.q, *case.own(), case.kv, batch)
    assert_near(attention_triton.prefill(case.q, case.kv, batch), expected)


@pytest.mark.parametrize("queries", [2, 66])
def test_a_window_that_hides_one_key_of_a_tile(queries: int) -> None:
    """The last query sees one key less of the first tile, or of the second, than the first query does."""
    case = Case(300, torch.float16, [queries], window=True)
    case.starts, case.window, case.heads = [170], 150, case.kv_heads
    case.store(shared=0)
    expected = attention.paged_prefill_attention(case.q, *case.own(), case.kv, case.batch())
    assert_near(attention_triton.prefill(case.q, case.kv, case.batch()), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_shared_prefix_is_read_for_its_group_and_rows_of_none_see_no_key(seed: int) -> None:
    case = Case(seed + 200, DTYPES[seed % 2], [1] * 4)
    case.starts = [100, 130, 97, 40]
    shared = 96 // case.block * case.block
    case.store(shared)
    batch = case.batch(SharedPrefix(0, 3, shared))
    expected = attention.shared_prefix_segment(case.q, case.kv, batch)
    segment = attention_triton.shared_prefix_segment(case.q, case.kv, batch)
    assert (segment.lse[3] == float("-inf")).all() and (segment.out[3] == 0).all()
    assert_near(segment.out, expected.out, case.dtype)
    assert_near(segment.lse, expected.lse, case.dtype)
    behind = attention_triton.decode_segment(case.q, case.kv, batch)
    merged = segments_triton.merge_segments([segment, behind])
    assert_near(merged.out.to(case.dtype), attention.paged_decode_attention(case.q, case.kv, case.batch()))


@pytest.mark.parametrize("seed", SEEDS)
def test_segments_merge(seed: int) -> None:
    torch.manual_seed(seed)
    count, n, heads, dim = 1 + seed, 3, 5, (8, 24)[seed % 2]
    parts = [Segment(torch.randn(n, heads, dim), torch.randn(n, heads) * 9) for _ in range(count)]
    for part in parts[1:]:
        part.lse[1] = float("-inf")
        part.out[1] = 0
    parts[0].lse[:2] = float("-inf")
    parts[0].out[:2] = 0
    merged, expected = segments_triton.merge_segments(parts), segments.merge_segments(parts)
    assert_near(merged.out, expected.out)
    assert_near(merged.lse, expected.lse)
    assert (merged.lse[1] == float("-inf")).all() and (merged.out[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 48), (1, 3, 80), (5, 1, 32)])
def test_store_kv(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n, kv_heads, dim = shape
    joined = torch.randn(n, 3 * kv_heads, dim).to(dtype)
    k, v = joined[:, kv_heads : 2 * kv_heads], joined[:, 2 * kv_heads :]
    slots = torch.randperm(7 * 5)[:n]
    kv, expected = torch.zeros(2, 2, 7, 5, kv_heads, dim, dtype=dtype)
    store_kv_triton.store_kv(k, v, kv, slots)
    store_kv.store_kv(k, v, expected, slots)
    assert torch.equal(kv, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("page", [(16, 2, 80), (3, 1, 2), (3, 1, 3)])
@pytest.mark.parametrize("shift", [0, 1])
def test_blocks_are_gathered_and_scattered_bit_by_bit(
    dtype: torch.dtype, page: tuple[int, int, int], shift: int
) -> None:
    torch.manual_seed(0)
    bits, word = (torch.int32, 31) if dtype == torch.float32 else (torch.int16, 15)
    kv = torch.randint(-(2**word), 2**word - 1, (2, 9, *page), dtype=bits).view(dtype)
    ids = torch.randperm(9)[:4]
    size = 2 * 4 * page[0] * page[1] * page[2]
    staging = torch.empty(size + shift, dtype=dtype)[shift:].view(2, 4, *page)
    blocks_triton.gather_blocks(kv, ids, staging)
    assert torch.equal(staging.view(bits), kv[:, ids].view(bits))
    target, expected = torch.zeros(2, 2, 9, *page, dtype=dtype)
    blocks_triton.scatter_blocks(staging, ids, target)
    blocks.scatter_blocks(staging, ids, expected)
    assert torch.equal(target.view(bits), expected.view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 128, 200])
def test_rms_norm_with_and_without_the_residual(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, update, weight = torch.randn(5, width), torch.randn(5, width), torch.randn(width)
    x, update, weight = x.to(dtype), update.to(dtype), weight.to(dtype)
    assert_near(rms_norm_triton.rms_norm(x, weight, 1e-5), rms_norm.rms_norm(x, weight, 1e-5))
    total, normed = rms_norm_triton.add_rms_norm(x, update, weight, 1e-5)
    expected_total, expected = rms_norm.add_rms_norm(x, update, weight, 1e-5)
    assert torch.equal(total, expected_total)
    assert_near(normed, expected)


def test_rms_norm_of_heads_in_place_of_a_wider_tensor() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 7, 48)[:, :5], torch.randn(5, 48)
    assert_near(rms_norm_triton.rms_norm(x, weight, 1e-6), rms_norm.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, dim", [(3, 48), (11, 32), (8, 80)])
def test_rope(heads: int, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, heads + 2, dim).to(dtype)[:, :heads]
    angles = torch.rand(4, dim // 2) * 6
    rotations = torch.polar(torch.full_like(angles, 1.25), angles)
    assert_near(rope_triton.apply_rope(x, rotations), rope.apply_rope(x, rotations))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 1500])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(3, 2 * width).to(dtype) * 4
    assert_near(silu_mul_triton.silu_mul(gate_up), silu_mul.silu_mul(gate_up))


@pytest.mark.parametrize(
    "family, fields",
    [
        ("mistral", {"sliding_window": 24, "head_dim": 48}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    ],
)
def test_a_runner_on_these_kernels_gives_the_tokens_of_one_on_their_twins(
    family: str, fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks beside decodes in one step, through all layers, and a move of blocks in between."""
    folder = make_checkpoint(tmp_path, family, seed=1, **fields)
    expected = generate(folder)
    for module in (attention, blocks, rms_norm, rope, segments, silu_mul, store_kv):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    assert generate(folder) == expected
    assert len(set(expected)) > 3


def generate(folder: Path) -> list[int | None]:
    """A prompt in three chunks beside another sequence's first tokens, which is moved and decodes on."""
    runner = Runner(EngineConfig(model=str(folder), device="cpu", kv_blocks=12))
    greedy = SampleSpec(0.0, 0, 0, 0)
    prompt, table, other = list(range(50, 100)), [7, 2, 9, 4], [3, 11]
    tokens = []
    for start, end in ((0, 20), (20, 41), (41, 50)):
        fed = tokens[-1:] or [5]
        items = [
            StepItem(prompt[start:end], start, table, greedy),
            StepItem(fed, len(tokens), other, greedy),
        ]
        tokens.append(runner.step(items)[1])
    runner.cache.scatter([0, 5], runner.cache.gather(other))
    for _ in range(3):
        tokens.append(runner.step([StepItem(tokens[-1:], len(tokens), [0, 5], greedy)])[0])
    return [*tokens, runner.step([StepItem([17], 50, table, greedy)])[0]]


def test_a_step_that_reads_a_shared_prefix_once_gives_the_tokens_of_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(tmp_path, "llama", seed=1)
    greedy = SampleSpec(0.0, 0, 0, 0)
    prompt = list(range(60, 100))
    tables = [[7, 2, 9], [7, 2, 3], [5], [7, 2, 1]]
    items = [StepItem([40 + at], n, tables[at], greedy) for at, n in enumerate((40, 35, 7, 33))]

    def tokens() -> list[int | None]:
        runner = Runner(EngineConfig(model=str(folder), device="cpu", kv_blocks=12))
        for table, n in zip(tables, (40, 35, 7, 33), strict=True):
            runner.step([StepItem(prompt[:n], 0, table, None)])
        return runner.step(items)

    apart = tokens()
    monkeypatch.setitem(sharing.SAVED_BYTES, "cpu", 1)
    assert tokens() == apart
    for module in (attention, rms_norm, rope, segments, silu_mul, store_kv):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    shared, whole = [], attention_triton.shared_prefix_segment
    monkeypatch.setattr(attention_triton, "shared_prefix_segment", lambda *a: shared.append(a) or whole(*a))
    assert tokens() == apart and len(shared) == 2
    assert len(set(apart)) == 4


@pytest.mark.parametrize("size", [3, 5])
def test_a_padded_decode_equals_the_step_and_writes_its_own_slots_alone(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a CUDA graph but the recording: the same inputs at other addresses, twice, the second time fewer."""
    for module in (attention, rms_norm, rope, segments, silu_mul, store_kv):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    folder = make_checkpoint(tmp_path, "mistral", seed=1, sliding_window=24)
    runner = Runner(EngineConfig(model=str(folder), device="cpu", kv_blocks=12))
    runner.cache.buffer.zero_()
    tables = [[7, 2, 9], [3, 11], [5]]
    runner.step([StepItem(range(9, 9 + n), 0, t, None) for n, t in zip((40, 20, 7), tables, strict=True)])
    padded = PaddedDecode(runner.spec, runner.layout, size, CPU)
    for count in (3, 2):
        items = [StepItem([4], n, t, None) for n, t in zip((40, 20, 7)[:count], tables, strict=False)]
        inputs = InputBuilder(runner.spec, runner.layout, CPU).build(items)
        before = runner.cache.buffer.clone()
        expected = runner._model.forward(inputs, runner.cache)
        after = [layer.clone() for layer in runner.cache.layers]
        runner.cache.buffer.copy_(before)
        padded.fill(inputs)
        torch.testing.assert_close(runner._model.forward(padded.inputs, runner.cache)[:count], expected)
        for layer, whole in zip(runner.cache.layers, after, strict=True):
            torch.testing.assert_close(layer, whole)
