"""One instance beside `transformers` on the same checkpoint, dtype, threads and requests, in turns within one process.

The peers are its continuous batching, begun by each call as `generate_batch` does it (`continuous`) and before the
clock starts (`running`), and its plain batched `generate`, in batches as large as the instance decodes, by order of
arrival: a batch runs until its longest output is done, and only tokens that were asked for count. Then what of a step
is spent outside the model's forward pass, and how a decode step's time grows with batch and context.
"""

from __future__ import annotations

import gc
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cluster.traces import read_azure
from ..cluster.workload import first, scale_lengths, token_ids
from ..engine.config import EMBEDDED, EngineConfig
from ..engine.step import SampleSpec, StepItem
from ..policy.batching import Budget
from .alone import Alone, Job, model_seconds
from .checkpoints import make_checkpoint
from .figures import Report
from .peer import ROLE, Transformers

logger = logging.getLogger(__name__)

TRACE = Path(__file__).parent / "data" / "azure_conv_2023.csv"
MIXED = 48
"""Requests of the trace's beginning, scaled so that the slowest peer needs seconds."""
PROMPT_SCALE, OUTPUT_SCALE = 1 / 8, 1 / 4
EQUAL = 32
EQUAL_PROMPT, EQUAL_OUTPUT = 128, 64
BATCHES = (1, 8, 32, 128)
STEPS = 24
"""Decode steps behind each share of overhead and each time of a shape."""
PROMPT = 32
"""Tokens of the prompts behind an overhead's share."""
LARGE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "vocab_size": 32000,
}
"""A Llama of 100 million parameters."""
LARGE_BATCH = 32
CONTEXTS = (64, 256, 1024)
GENERATE, CONTINUOUS, RUNNING, PENSTOCK = "generate", "continuous", "running", "penstock"

Say = Callable[[str], None]
Contender = Callable[[Sequence[Job]], list[list[int]]]
Ready = Callable[[], AbstractContextManager[Contender]]
"""Makes a contender ready, which is not timed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    model: str = EMBEDDED
    threads: int = 1
    rounds: int = 3
    mixed: int = MIXED
    equal: int = EQUAL
    batches: Sequence[int] = BATCHES
    contexts: Sequence[int] = CONTEXTS
    large: bool = True

    @property
    def command(self) -> str:
        model = "" if self.model == EMBEDDED else f" --model {self.model}"
        return f"bench engine{model} --rounds {self.rounds} --threads {self.threads}"

    @property
    def role(self) -> Budget:
        """Of the instance: it decodes the largest of the batches at a time."""
        return Budget(ROLE.prefill_tokens, max(ROLE.decode_slots, LARGE_BATCH, *self.batches))

    def config(self, model: str, tokens: int) -> EngineConfig:
        """An instance whose cache holds so many tokens in sequences of any lengths, and computes every prompt anew."""
        return EngineConfig(
            model=model,
            device="cpu",
            dtype="float32",
            threads=self.threads,
            kv_blocks=tokens // 16 + 2 * 128,
            prefix_cache=False,
        )


class Figures:
    """Samples by key, and the report of their medians."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}
        self._units: dict[str, str] = {}

    def add(self, key: str, unit: str, value: float) -> None:
        self._samples.setdefault(key, []).append(value)
        self._units[key] = unit

    def report(self, command: str) -> Report:
        several = {key: values for key, values in self._samples.items() if len(values) > 1}
        return Report(
            command=command,
            figures={key: statistics.median(values) for key, values in self._samples.items()},
            units=self._units,
            spread={key: (min(values), max(values)) for key, values in several.items()},
        )


def measure(plan: Plan, say: Say = logger.info) -> Report:
    """Run it all. ValueError for a checkpoint that cannot be served, or rounds that are none."""
    if plan.rounds < 1:
        raise ValueError(f"at least 1 round is needed, got {plan.rounds}")
    figures = Figures()
    alone = Alone(plan.config(plan.model, _tokens_held(plan)), plan.role)
    _compare(plan, alone, figures, say)
    say("what a step spends outside the model")
    for batch in plan.batches:
        _overhead(alone, batch, plan.rounds, f"overhead_share_b{batch}", figures)
    _growth(alone, plan, figures)
    if plan.large:
        say("the same of 100 million parameters")
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            make_checkpoint(Path(folder), "llama", seed=1, **LARGE)
            tokens = LARGE_BATCH * (PROMPT + 2 * STEPS)
            large = Alone(plan.config(folder, tokens), plan.role)
            _overhead(large, LARGE_BATCH, 1, f"overhead_share_large_b{LARGE_BATCH}", figures)
    return figures.report(plan.command)


def _tokens_held(plan: Plan) -> int:
    jobs = _mixed(plan.mixed, 2)
    return max(
        sum(len(job.prompt) + job.tokens for job in jobs),
        plan.equal * (EQUAL_PROMPT + EQUAL_OUTPUT),
        max(plan.batches, default=0) * (PROMPT + 2 * STEPS + max(plan.batches, default=0)),
        max(plan.batches, default=0) * max(plan.contexts, default=0),
    )


# ---- beside transformers


def _mixed(count: int, vocabulary: int) -> list[Job]:
    scaled = scale_lengths(first(read_azure(TRACE), count), PROMPT_SCALE, OUTPUT_SCALE)
    return [
        Job(tuple(token_ids(request, vocabulary, own=str(number))), request.output_tokens)
        for number, request in enumerate(scaled.requests)
    ]


def _equal(count: int, vocabulary: int) -> list[Job]:
    draw = random.Random(count)
    return [Job(tuple(draw.choices(range(vocabulary), k=EQUAL_PROMPT)), EQUAL_OUTPUT) for _ in range(count)]


def _compare(plan: Plan, alone: Alone, figures: Figures, say: Say) -> None:
    """Tokens of output a second, and how many times the peers' that is; the order turns with each round."""
    folder = plan.config(plan.model, 0).folder
    peer = Transformers.of(folder, alone.runner.layout.blocks * alone.runner.layout.block_size, plan.role)
    torch.set_num_threads(plan.threads)
    vocabulary = alone.runner.spec.vocab
    contenders: dict[str, Ready] = {
        PENSTOCK: lambda: nullcontext(alone.run),
        CONTINUOUS: lambda: nullcontext(peer.continuous),
        RUNNING: peer.running,
        GENERATE: lambda: nullcontext(peer.generate),
    }
    for name, jobs in (("mixed", _mixed(plan.mixed, vocabulary)), ("equal", _equal(plan.equal, vocabulary))):
        tokens = sum(job.tokens for job in jobs)
        say(f"{len(jobs)} requests of {name} lengths, {tokens} tokens of output")
        for ready in contenders.values():
            _timed(ready, jobs[:2])  # warm
        for turn in range(plan.rounds):
            lead = turn % len(contenders)
            order = list(contenders)[lead:] + list(contenders)[:lead]
            rates = {which: tokens / _timed(contenders[which], jobs) for which in order}
            for which in contenders:
                figures.add(f"tokens_per_s_{which}_{name}", "tokens/s", rates[which])
            for which in (CONTINUOUS, RUNNING, GENERATE):
                figures.add(f"ratio_{which}_{name}", "1", rates[PENSTOCK] / rates[which])


def _timed(ready: Ready, jobs: Sequence[Job]) -> float:
    with ready() as contender:
        gc.collect()
        began = time.perf_counter()
        outputs = contender(jobs)
        took = time.perf_counter() - began
    assert [len(output) for output in outputs] == [job.tokens for job in jobs], "all run to their full length"
    return took


# ---- steps


def _overhead(alone: Alone, batch: int, rounds: int, key: str, figures: Figures) -> None:
    """The share of decode rounds that is spent outside the model's forward pass."""
    clock = _clock()
    jobs = [Job(tuple(range(1, PROMPT + 1)), PROMPT + STEPS * rounds + batch) for _ in range(batch)]
    sessions = alone.begin(jobs)
    while not all(alone.outputs(session) for session in sessions):
        alone.round()
    with model_seconds(clock) as spent:
        for _ in range(rounds):
            spent.clear()
            made, began = _made(alone, sessions), clock()
            for _ in range(STEPS):
                alone.round()
            assert _made(alone, sessions) == made + batch * STEPS, "each round is a step of all of them"
            figures.add(key, "1", 1 - sum(spent) / (clock() - began))
    while alone.round():
        pass


def _made(alone: Alone, sessions: Sequence[str]) -> int:
    return sum(len(alone.outputs(session)) for session in sessions)


def _clock() -> Callable[[], float]:
    """The thread's own time where one thread does all the work: then others on the machine do not count."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _growth(alone: Alone, plan: Plan, figures: Figures) -> None:
    """A decode step's time as a + b batch + c context, by least squares of relative errors over a grid."""
    shapes = [(batch, context) for batch in plan.batches for context in plan.contexts]
    if len(shapes) < 4:
        return
    seconds = np.array([_decode_seconds(alone, batch, context) for batch, context in shapes])
    terms = np.array([(1.0, batch, batch * context) for batch, context in shapes])
    found, *_ = np.linalg.lstsq(terms / seconds[:, None], np.ones(len(shapes)), rcond=None)
    errors = np.abs(terms @ found / seconds - 1)
    figures.add("step_ms", "ms", found[0] * 1e3)
    figures.add("step_ms_per_sequence", "ms", found[1] * 1e3)
    figures.add("step_ms_per_1000_tokens", "ms", found[2] * 1e6)
    figures.add("step_fit_error_p50", "1", float(np.median(errors)))
    figures.add("step_fit_error_max", "1", float(errors.max()))


def _decode_seconds(alone: Alone, batch: int, context: int) -> float:
    layout = alone.runner.layout
    blocks = -(-context // layout.block_size)
    spec = SampleSpec(0.0, 0, 0, 0)
    items = [
        StepItem([7], context - 1, range(number * blocks, (number + 1) * blocks), spec)
        for number in range(batch)
    ]
    clock, times = _clock(), []
    for _ in range(5):
        began = clock()
        alone.runner.step(items)
        times.append(clock() - began)
    return statistics.median(times)
