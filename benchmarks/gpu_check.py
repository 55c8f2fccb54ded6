"""Whether the kernels and the engine are right on this machine's GPU, and then how fast they are.

Kernels are compared with their torch twins on the CPU, in float32 from the same inputs; the engine's greedy float32
tokens with those of `transformers`, under a random schedule of chunks and decodes, for each family, with CUDA graphs
and without, and with a step launched before the one before it has landed; a launch that waits for the GPU is wrong.
Needs torch with its Triton, transformers, numpy, safetensors, click and rich; neither Ray nor an installed Penstock.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import click
import numpy as np
import torch

from ..engine.config import EngineConfig
from ..engine.flight import Flight
from ..engine.runner import Runner, SampleSpec, StepItem
from ..kernels.attention import paged_decode_attention, paged_prefill_attention
from ..kernels.blocks import gather_blocks, scatter_blocks
from ..kernels.paged import PagedBatch, SharedPrefix
from ..kernels.rms_norm import add_rms_norm
from ..kernels.rope import apply_rope
from ..kernels.silu_mul import silu_mul
from ..kernels.store_kv import store_kv
from . import kernels, whole_model
from .checkpoints import VARIANTS, make_checkpoint
from .compare import compare
from .figures import Report
from .reference import Reference

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of an element's error, relative to 1 + its size."""
SEEDS = range(8)
PROMPTS = (300, 90, 260, 1, 40)
OUTPUT_TOKENS = 24
CHUNKS = (1, 3, 7, 16, 33, 200)
MOST_TIES = 1
"""Of a variant's tokens."""
WAYS = {
    "plain": "one step at a time",
    "graphs": "with CUDA graphs",
    "ahead": "with CUDA graphs, a step launched before the one before it has landed",
}

Tensors = tuple[torch.Tensor, ...]
Work = Callable[..., torch.Tensor | Tensors]


def main() -> int:
    """Exit code 0 where all is right, 1 where something is not, 2 where there is no GPU."""
    if not torch.cuda.is_available():
        click.echo("gpu-check: this machine has no GPU that torch can use", err=True)
        return 2
    report, wrong = run(torch.device("cuda"), SEEDS, VARIANTS)
    reports = [report, kernels.measure()]
    try:
        reports.append(whole_model.measure(reports[1].figures, kernels.gpu_clock))
    except ValueError as error:
        click.echo(f"gpu-check: {error}; it is left out", err=True)
    Report(
        command="gpu-check",
        figures={key: value for one in reports for key, value in one.figures.items()},
        units={key: unit for one in reports for key, unit in one.units.items()},
        spread={key: ends for one in reports for key, ends in one.spread.items()},
    ).show(as_json="--json" in sys.argv[1:])
    for line in wrong:
        click.echo(f"gpu-check: {line}", err=True)
    return 1 if wrong else 0


def run(
    device: torch.device, seeds: range, variants: tuple[tuple[str, dict], ...]
) -> tuple[Report, list[str]]:
    """The figures of the checks on `device`, and a line for each thing that is wrong."""
    figures: dict[str, float] = {}
    wrong = []
    for dtype, tolerance in TOLERANCES.items():
        for name, error in kernel_errors(device, dtype, seeds).items():
            figures[f"{name}_error_{str(dtype).removeprefix('torch.')}"] = error
            if not error <= tolerance:
                wrong.append(f"{name} in {dtype} is off by {error:.3g}, more than {tolerance:g}")
    units = dict.fromkeys(figures, "1")
    for key in ("engine_tokens", "engine_ties", "engine_mismatched"):
        figures[key], units[key] = 0, "tokens"
    ways = tuple(WAYS) if device.type == "cuda" else ("ahead",)
    for (family, fields), way in product(variants, ways):
        try:
            tokens, ties, mismatched = engine_tokens(device, family, fields, way)
        except Waited as waited:
            wrong.append(f"{family} {WAYS[way]}: a launch waits for the GPU: {waited}")
            continue
        figures["engine_tokens"] += tokens
        figures["engine_ties"] += ties
        figures["engine_mismatched"] += mismatched
        if mismatched or ties > MOST_TIES:
            wrong.append(f"{family} {WAYS[way]}: of {tokens} tokens {mismatched} are others and {ties} tie")
    return Report(command="gpu-check", figures=figures, units=units), wrong


@torch.inference_mode()
def kernel_errors(device: torch.device, dtype: torch.dtype, seeds: range) -> dict[str, float]:
    """For each kernel the largest error over cases of random shapes."""
    errors: dict[str, float] = {}
    for seed in seeds:
        for name, work, inputs in _cases(seed, dtype):
            errors[name] = max(errors.get(name, 0.0), _error(work, inputs, device))
    return errors


def _error(work: Work, inputs: Tensors, device: torch.device) -> float:
    found = work(*(tensor.to(device) for tensor in inputs))
    expected = work(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs))
    pairs = zip(_tuple(found), _tuple(expected), strict=True)
    return max(((a.cpu().float() - b).abs() / (1 + b.abs())).max().item() for a, b in pairs)


def _tuple(tensors: torch.Tensor | Tensors) -> Tensors:
    return tensors if isinstance(tensors, tuple) else (tensors,)


def _cases(seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Work, Tensors]]:
    """Kernels by name, with inputs that they take on any device."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    kv_heads, group = int(rng.choice([1, 2, 8])), int(rng.choice([1, 3, 4, 8]))
    dim, block = int(rng.choice([32, 48, 64, 80, 128])), int(rng.choice([5, 16, 32]))
    heads = kv_heads * group
    starts, counts = [int(start) for start in rng.integers(0, 3000, 5)], [1, 700, 33, 128, 2]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    blocks = [-(-end // block) for end in ends]
    tables = np.split(rng.permutation(sum(blocks)), np.cumsum(blocks)[:-1])
    kv = randn(2, sum(blocks), block, kv_heads, dim)

    def batch(tensor: torch.Tensor, ones: bool, window: int | None, *shared: SharedPrefix) -> PagedBatch:
        lasts = [end - 1 for end in ends] if ones else starts
        return PagedBatch(tables, lasts, [1] * 5 if ones else counts, block, window, tensor.device, shared)

    decoding = randn(5, heads, dim)
    for name, window in (("decode", None), ("decode_window", 300)):
        yield (
            name,
            lambda q, kv, window=window: paged_decode_attention(q, kv, batch(q, True, window)),
            (decoding, kv),
        )
    # One sequence that is alone with its prefix: the tables differ, so no two could share one.
    alone = SharedPrefix(1, 1, ends[1] - 1)
    yield (
        "shared_prefix",
        lambda q, kv: paged_decode_attention(q, kv, batch(q, True, None, alone)),
        (decoding, kv),
    )
    own = [
        table[np.arange(s, e) // block] * block + np.arange(s, e) % block
        for table, s, e in zip(tables, starts, ends, strict=True)
    ]
    slots = torch.from_numpy(np.concatenate(own))
    k, v = kv.view(2, -1, kv_heads, dim)[:, slots].unbind(0)
    queries = randn(sum(counts), heads, dim)
    for name, window in (("prefill", None), ("prefill_window", 300)):
        yield (
            name,
            lambda q, k, v, kv, window=window: paged_prefill_attention(q, k, v, kv, batch(q, False, window)),
            (queries, k, v, kv),
        )
    yield from _copies(kv, slots, randn)
    width = heads * dim
    yield (
        "add_rms_norm",
        lambda x, y, w: add_rms_norm(x, y, w, 1e-5),
        (randn(9, width), randn(9, width), randn(width)),
    )
    angles = torch.rand(9, dim // 2) * 6
    yield (
        "rope",
        lambda x, turns: apply_rope(x, turns),
        (randn(9, heads, dim), torch.polar(torch.ones_like(angles), angles)),
    )
    yield "silu_mul", silu_mul, (randn(9, 2 * width),)


def _copies(
    kv: torch.Tensor, slots: torch.Tensor, randn: Callable[..., torch.Tensor]
) -> Iterator[tuple[str, Work, Tensors]]:
    ids = torch.randperm(kv.shape[1])[:7]

    def stored(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        kv = kv.clone()
        store_kv(k, v, kv, slots)
        return kv

    def moved(kv: torch.Tensor, ids: torch.Tensor) -> Tensors:
        staging = torch.empty((2, len(ids), *kv.shape[2:]), dtype=kv.dtype, device=kv.device)
        gather_blocks(kv, ids, staging)
        target = torch.zeros_like(kv)
        scatter_blocks(staging, ids.flip(0), target)
        return staging, target

    yield "store_kv", stored, (*randn(2, len(slots), *kv.shape[3:]).unbind(0), kv, slots)
    yield "gather_scatter", moved, (kv, ids)


@dataclass
class _Stream:
    """A sequence on blocks of its own."""

    prompt: list[int]
    table: list[int]
    output: list[int] = field(default_factory=list)
    fed: int = 0
    owed: int = 0
    """Tokens that steps in flight draw."""
    place: int = 0
    """Of its item in the latest step that it was in."""

    @property
    def made(self) -> int:
        return len(self.output) + self.owed

    def item(self, chunk: int, place: int) -> StepItem:
        """What is fed next, as item `place` of a step that is launched now."""
        start, known = self.fed, self.prompt + self.output
        follows = self.place if start == len(known) else None
        tokens = known[start : start + chunk] if follows is None else [0]
        self.fed, self.place = start + len(tokens), place
        last = self.fed == len(self.prompt) + self.made
        spec = SampleSpec(0.0, 0, 0, self.made) if last else None
        self.owed += last
        return StepItem(tokens, start, self.table, spec, follows=follows)

    def take(self, token: int | None) -> None:
        if token is not None:
            self.owed -= 1
            self.output.append(token)


def engine_tokens(device: torch.device, family: str, fields: dict, way: str) -> tuple[int, int, int]:
    """Greedy tokens of a random checkpoint in float32, ties among them, and those that are not the reference's."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder), family, 1, **fields)
        config = EngineConfig(
            model=folder, device=device.type, dtype="float32", kv_blocks=64, decode_graphs=way != "plain"
        )
        streams = _generate(Runner(config), random.Random(2), ahead=int(way == "ahead"))
        reference = Reference(checkpoint)
        found = [compare(s.output, reference.logits(s.prompt, s.output), 0.0, 0) for s in streams]
    return (
        sum(f.tokens for f in found),
        sum(f.ties for f in found),
        sum(f.mismatched for f in found),
    )


def _generate(runner: Runner, draw: random.Random, ahead: int) -> list[_Stream]:
    """Sequences under random chunks, a random part of them in each step; so many steps in flight behind each launch."""
    size, free = runner.layout.block_size, list(range(runner.layout.blocks))
    draw.shuffle(free)
    streams = []
    for length in PROMPTS:
        need = -(-(length + OUTPUT_TOKENS) // size)
        prompt = [draw.randrange(runner.spec.vocab) for _ in range(length)]
        streams.append(_Stream(prompt, [free.pop() for _ in range(need)]))
    flights: deque[tuple[Flight, list[_Stream]]] = deque()
    while waiting := [stream for stream in streams if stream.made < OUTPUT_TOKENS]:
        picked = [stream for stream in waiting if draw.random() < 0.8] or waiting[:1]
        items = [stream.item(draw.choice(CHUNKS), place) for place, stream in enumerate(picked)]
        flights.append((_launch(runner, items, flights[-1][0] if flights else None), picked))
        while len(flights) > ahead:
            _land(*flights.popleft())
    for flight in flights:
        _land(*flight)
    return streams


class Waited(Exception):
    """A launch waited for the GPU."""


def _launch(runner: Runner, items: Sequence[StepItem], after: Flight | None) -> Flight:
    """`Runner.launch`; Waited where it asks a GPU for anything, which mixtures of experts alone may."""
    if runner.device.type == "cpu" or runner.spec.mixture is not None:
        return runner.launch(items, after)
    torch.cuda.set_sync_debug_mode("error")
    try:
        return runner.launch(items, after)
    except RuntimeError as error:
        raise (Waited(error) if "synchroniz" in str(error) else error) from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _land(flight: Flight, streams: list[_Stream]) -> None:
    for stream, token in zip(streams, flight.result(), strict=True):
        stream.take(token)


if __name__ == "__main__":
    sys.exit(main())
