"""How near the kernels come to what the GPU can do: attention against measured copies and matrix products.

Shapes are those of one layer of an 8B model (32 query heads, 8 key heads of dimension 128, bfloat16) over scattered
blocks of 16 tokens. The second-level cache is cleared before every repetition; a figure is the median. What a step
makes once (block tables, lists of work) is made before the clock starts, launches are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..kernels.attention import paged_decode_attention, paged_prefill_attention
from ..kernels.blocks import gather_blocks, scatter_blocks
from ..kernels.paged import PagedBatch, SharedPrefix
from .figures import Report, progress


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured. A case whose KV exceeds `most_kv_bytes` is left out."""

    batches: tuple[int, ...] = (1, 16, 64, 256)
    contexts: tuple[int, ...] = (1024, 4096, 16384)
    neighbours: tuple[int, ...] = tuple(range(16, 65))
    """Batch sizes between which decoding must not get slower by leaps, at context `neighbour_context`."""
    neighbour_context: int = 4096
    chunks: tuple[tuple[int, int], ...] = ((2048, 0), (8192, 0), (16384, 0), (2048, 14336))
    """(tokens, cached tokens before them)"""
    shared: tuple[int, int, int] = (64, 4096, 128)
    """Sequences, tokens of their common prefix, tokens of their own."""
    copied_blocks: int = 4096
    copy_bytes: int = 1 << 30
    matmul: int = 8192
    most_kv_bytes: int = 1 << 62
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    block: int = 16

    @property
    def token_bytes(self) -> int:
        return 2 * self.kv_heads * self.dim * 2


class Seconds(NamedTuple):
    median: float
    least: float
    most: float


Clock = Callable[[Callable[[], object]], Seconds]


@dataclass
class Measured:
    """Figures as they come in."""

    figures: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, key: str, unit: str, amount: float, taken: Seconds) -> None:
        """`amount` of `unit` times seconds, in each second."""
        self.figures[key], self.units[key] = amount / taken.median, unit
        self.spread[key] = (amount / taken.most, amount / taken.least)


def measure() -> Report:
    """The figures of this machine's GPU; ValueError where there is none."""
    if not torch.cuda.is_available():
        raise ValueError("the kernels are measured on a GPU, and this machine has none that torch can use")
    free, _ = torch.cuda.mem_get_info()
    return run(Sizes(most_kv_bytes=free // 2), torch.device("cuda"), gpu_clock)


def gpu_clock(work: Callable[[], object]) -> Seconds:
    """Seconds on the GPU, with its second-level cache cleared before each repetition."""
    from triton.testing import do_bench

    milliseconds: Any = do_bench(work, warmup=25, rep=100, quantiles=[0.5, 0.0, 1.0])
    return Seconds(*(value / 1e3 for value in milliseconds))


@torch.inference_mode()
def run(sizes: Sizes, device: torch.device, clock: Clock) -> Report:
    """The figures of `device` by `clock`."""
    measured = Measured()
    parts = (_peaks, _decodes, _neighbours, _shared_prefix, _chunks, _copies)
    with progress("kernels", len(parts)) as advance:
        for part in parts:
            part(_Bench(sizes, device, clock, measured))
            advance(1)
    return Report(
        command="bench kernels", figures=measured.figures, units=measured.units, spread=measured.spread
    )


@dataclass(frozen=True)
class _Bench:
    sizes: Sizes
    device: torch.device
    clock: Clock
    measured: Measured

    def fits(self, tokens: int) -> bool:
        return tokens * self.sizes.token_bytes <= self.sizes.most_kv_bytes

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def cache(self, sequences: int, tokens: int) -> torch.Tensor:
        """A layer's cache for as many sequences of `tokens` tokens."""
        blocks = sequences * -(-tokens // self.sizes.block)
        return self.randn(2, blocks, self.sizes.block, self.sizes.kv_heads, self.sizes.dim)

    def tables(self, sequences: int, tokens: int) -> list[np.ndarray]:
        """Scattered blocks for `tokens` tokens of each sequence."""
        blocks = -(-tokens // self.sizes.block)
        order = np.random.default_rng(0).permutation(sequences * blocks)
        return list(order.reshape(sequences, blocks))

    def decode_batch(self, sequences: int, tokens: int) -> PagedBatch:
        tables = self.tables(sequences, tokens)
        return PagedBatch(
            tables, [tokens - 1] * sequences, [1] * sequences, self.sizes.block, None, self.device
        )

    def decode_time(self, batch: PagedBatch, kv: torch.Tensor) -> Seconds:
        q = self.randn(len(batch.tables), self.sizes.heads, self.sizes.dim)
        return self.clock(lambda: paged_decode_attention(q, kv, batch))


def _peaks(bench: _Bench) -> None:
    """What attention is compared with: bytes read and written by a copy, and the rate of a matrix product."""
    source = torch.zeros(bench.sizes.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    taken = bench.clock(lambda: target.copy_(source))
    bench.measured.add("copy_tbps", "TB/s", 2 * bench.sizes.copy_bytes / 1e12, taken)
    n = bench.sizes.matmul
    a, b = bench.randn(n, n), bench.randn(n, n)
    bench.measured.add("matmul_tflops", "TFLOP/s", 2 * n**3 / 1e12, bench.clock(lambda: a @ b))


def _decodes(bench: _Bench) -> None:
    """Bytes of KV read each second, as a share of those that a copy reads and writes."""
    peak = bench.measured.figures["copy_tbps"] * 1e12
    for batch, context in _grid(bench):
        taken = bench.decode_time(bench.decode_batch(batch, context), bench.cache(batch, context))
        size = batch * context * bench.sizes.token_bytes
        bench.measured.add(f"decode_share_b{batch}_c{context}", "1", size / peak, taken)


def _grid(bench: _Bench) -> Iterator[tuple[int, int]]:
    for batch in bench.sizes.batches:
        yield from ((batch, context) for context in bench.sizes.contexts if bench.fits(batch * context))


def _neighbours(bench: _Bench) -> None:
    """The largest growth of decoding's time from one batch size to the next."""
    context = bench.sizes.neighbour_context
    sizes = [batch for batch in bench.sizes.neighbours if bench.fits(batch * context)]
    if len(sizes) < 2:
        return
    kv = bench.cache(max(sizes), context)
    times = [bench.decode_time(bench.decode_batch(batch, context), kv).median for batch in sizes]
    growth = max(after / before - 1 for before, after in zip(times, times[1:], strict=False))
    key = f"decode_worst_growth_c{context}"
    bench.measured.figures[key], bench.measured.units[key] = growth, "1"


def _shared_prefix(bench: _Bench) -> None:
    """How many times faster decoding is where a common prefix is read once for the group."""
    sequences, common, own = bench.sizes.shared
    if not bench.fits(sequences * (common + own)):
        return
    apart = bench.decode_batch(sequences, common + own)
    blocks = common // bench.sizes.block
    tables = [np.concatenate([apart.tables[0][:blocks], table[blocks:]]) for table in apart.tables]
    apart = replace(apart, tables=tables)
    grouped = replace(apart, shared=(SharedPrefix(0, sequences, blocks * bench.sizes.block),))
    kv = bench.cache(sequences, common + own)
    alone = bench.decode_time(apart, kv)
    key = f"shared_prefix_ratio_b{sequences}_c{common}"
    bench.measured.add(key, "1", alone.median, bench.decode_time(grouped, kv))


def _chunks(bench: _Bench) -> None:
    """Products of causal attention each second (4 H D for a query and a key), as a share of the matrix product's."""
    peak = bench.measured.figures["matmul_tflops"] * 1e12
    sizes = bench.sizes
    for tokens, prefix in sizes.chunks:
        if not bench.fits(tokens + prefix):
            continue
        tables = bench.tables(1, tokens + prefix)
        batch = PagedBatch(tables, [prefix], [tokens], sizes.block, None, bench.device)
        kv, q = bench.cache(1, tokens + prefix), bench.randn(tokens, sizes.heads, sizes.dim)
        k, v = bench.randn(2, tokens, sizes.kv_heads, sizes.dim).unbind(0)
        pairs = tokens * prefix + tokens * (tokens + 1) / 2

        def attend(q=q, k=k, v=v, kv=kv, batch=batch) -> object:
            return paged_prefill_attention(q, k, v, kv, batch)

        key = f"prefill_share_n{tokens}_p{prefix}"
        bench.measured.add(key, "1", 4 * sizes.heads * sizes.dim * pairs / peak, bench.clock(attend))


def _copies(bench: _Bench) -> None:
    """Bytes read and written by copies of scattered blocks to and from contiguous memory."""
    blocks = bench.sizes.copied_blocks
    kv = bench.cache(4 * blocks, bench.sizes.block)
    ids = torch.randperm(4 * blocks, device=bench.device)[:blocks]
    staging = torch.empty((2, blocks, *kv.shape[2:]), dtype=kv.dtype, device=bench.device)
    works: Mapping[str, Callable[[], object]] = {
        "gather_tbps": lambda: gather_blocks(kv, ids, staging),
        "scatter_tbps": lambda: scatter_blocks(staging, ids, kv),
    }
    for key, work in works.items():
        bench.measured.add(key, "TB/s", 2 * staging.nbytes / 1e12, bench.clock(work))
