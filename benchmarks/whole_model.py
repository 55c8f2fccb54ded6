"""How near a whole model comes to what the GPU can do, and to `transformers` on the same GPU.

A random Llama of the shape of an 8B model, in bfloat16. Prefill is one step of one prompt, as a share of the rate of a
matrix product. Decoding goes through the engine, its scheduler and its seats, in rounds as an instance runs them; it is
held against the time that a copy would take for the bytes that a step must read, weights and KV. The peer is the
continuous batching of `transformers`, on random weights of its own, given the same requests in turns.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..engine.checkpoint import ModelSpec
from ..engine.config import EngineConfig
from ..engine.families import read_architecture, with_defaults
from ..engine.runner import Runner
from ..engine.step import SampleSpec, StepItem
from ..engine.weights import GatedWeights, LayerWeights, ModelWeights
from ..policy.batching import Budget
from .alone import Alone, Job
from .figures import Report, progress
from .kernels import Clock, Measured, Seconds
from .peer import Transformers

LLAMA_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
STANDARD_DEVIATION = 0.02
HEADROOM_BYTES = 4 << 30
"""For what a forward pass holds besides weights and KV."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured."""

    config: Mapping[str, Any] = field(default_factory=lambda: LLAMA_8B)
    prefills: tuple[int, ...] = (2048, 8192)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    context: int = 1024
    """Tokens of each sequence's prompt where decoding is measured."""
    steps: int = 64
    """Decode steps behind one time."""
    rounds: int = 3
    requests: int = 64
    prompt: int = 512
    output: int = 128
    """Of each of the requests that the peer is given too."""
    role: Budget = Budget(2048, 64)
    block: int = 16

    @property
    def cache_tokens(self) -> int:
        """KV that the largest part needs."""
        decoded = max(self.batches) * self._held(self.context + self.decoded(max(self.batches)))
        compared = self.requests * self._held(self.prompt + self.output)
        return max(decoded, compared, self._held(max(self.prefills)))

    def decoded(self, batch: int) -> int:
        """Tokens that each of a batch makes: those of all rounds, and while the last of it is prefilled."""
        return self.steps * self.rounds + batch + self.block

    def _held(self, tokens: int) -> int:
        """Tokens of the blocks for so many, and a block more."""
        return (-(-tokens // self.block) + 1) * self.block

    @property
    def spec(self) -> ModelSpec:
        config = with_defaults(self.config)
        return ModelSpec(**read_architecture(config), eos=frozenset(), fingerprint="random")


def matrix_weights(spec: ModelSpec) -> int:
    """Weights that every token is multiplied with in the layers."""
    attention = spec.hidden * (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim
    return spec.layers * (attention + 3 * spec.hidden * spec.intermediate)


def prefill_operations(spec: ModelSpec, tokens: int) -> float:
    """Of a prompt whose last token alone is projected to the vocabulary; a product and a sum are two.

    Attention takes 4 H D for each query and each key that it sees.
    """
    pairs = tokens * (tokens + 1) / 2
    attention = 4 * spec.layers * spec.heads * spec.head_dim * pairs
    return 2 * matrix_weights(spec) * tokens + attention + 2 * spec.vocab * spec.hidden


def decode_bytes(spec: ModelSpec, batch: int, context: float) -> float:
    """What a bfloat16 step that decodes `batch` sequences must read: weights once, and each one's keys and values."""
    kv = 2 * spec.layers * spec.kv_heads * spec.head_dim * batch * context
    return 2 * (matrix_weights(spec) + spec.vocab * spec.hidden + kv)


def random_weights(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Of a dense model without biases."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, STANDARD_DEVIATION)

    def ones() -> torch.Tensor:
        return torch.ones(spec.hidden, dtype=dtype, device=device)

    def layer() -> LayerWeights:
        rows, kv_rows = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        gated = GatedWeights(
            gate_up=randn(2 * spec.intermediate, spec.hidden),
            gate_up_bias=None,
            down=randn(spec.hidden, spec.intermediate),
            down_bias=None,
        )
        return LayerWeights(
            input_norm=ones(),
            qkv=randn(rows + 2 * kv_rows, spec.hidden),
            qkv_bias=None,
            qk_norm=None,
            output=randn(spec.hidden, rows),
            output_bias=None,
            post_norm=ones(),
            feed_forward=gated,
        )

    return ModelWeights(
        embedding=randn(spec.vocab, spec.hidden),
        layers=tuple(layer() for _ in range(spec.layers)),
        norm=ones(),
        head=randn(spec.vocab, spec.hidden),
    )


def measure(peaks: Mapping[str, float], clock: Clock) -> Report:
    """The figures of this machine's GPU; ValueError where it is too small. `peaks` are those of `kernels.measure`."""
    sizes, device = Sizes(), torch.device("cuda")
    spec = sizes.spec
    weights = 2 * (matrix_weights(spec) + 2 * spec.vocab * spec.hidden)
    cache = sizes.cache_tokens * spec.block_bytes(1, "bfloat16")
    needed, (free, _) = 2 * (weights + cache) + HEADROOM_BYTES, torch.cuda.mem_get_info()
    if free < needed:
        raise ValueError(
            f"the whole model needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free"
        )
    return run(sizes, device, peaks, clock)


def run(
    sizes: Sizes,
    device: torch.device,
    peaks: Mapping[str, float],
    clock: Clock,
    now: Callable[[], float] = time.perf_counter,
) -> Report:
    """The figures of `device`: `clock` times prefills, `now` is read before and after what the engine does."""
    measured = Measured()
    with progress("whole model", 3) as advance:
        alone = _alone(sizes, device)
        _prefills(sizes, alone.runner, peaks["matmul_tflops"] * 1e12, clock, measured)
        advance(1)
        for batch in sizes.batches:
            _decode(sizes, alone, batch, peaks["copy_tbps"] * 1e12, now, measured)
        advance(1)
        _beside(sizes, alone, _peer(sizes, device), now, measured)
        advance(1)
    return Report(command="gpu-check", figures=measured.figures, units=measured.units, spread=measured.spread)


def _alone(sizes: Sizes, device: torch.device) -> Alone:
    blocks = -(-sizes.cache_tokens // sizes.block)
    config = EngineConfig(
        device=device.type, dtype="bfloat16", block_size=sizes.block, kv_blocks=blocks, prefix_cache=False
    )
    weights = random_weights(sizes.spec, torch.bfloat16, device)
    return Alone(config, sizes.role, Runner(config, sizes.spec, weights=weights))


def _peer(sizes: Sizes, device: torch.device) -> Transformers:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in sizes.config.items() if key != "model_type"}
    config = AutoConfig.for_model(sizes.config["model_type"], dtype="bfloat16", **fields)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return Transformers(model, sizes.cache_tokens, sizes.role)


def _prefills(sizes: Sizes, runner: Runner, peak: float, clock: Clock, measured: Measured) -> None:
    greedy = SampleSpec(0.0, 0, 0, 0)
    for tokens in sizes.prefills:
        item = StepItem([1 + at % 1000 for at in range(tokens)], 0, range(-(-tokens // sizes.block)), greedy)
        operations = prefill_operations(runner.spec, tokens)
        taken = clock(lambda item=item: runner.step([item]))
        measured.add(f"model_prefill_share_n{tokens}", "1", operations / peak, taken)


def _decode(
    sizes: Sizes, alone: Alone, batch: int, peak: float, now: Callable[[], float], measured: Measured
) -> None:
    """Rounds in which all of `batch` sequences decode, nothing else."""
    prompt = tuple(1 + at % 1000 for at in range(sizes.context))
    sessions = alone.begin([Job(prompt, sizes.decoded(batch))] * batch)
    while not all(alone.outputs(session) for session in sessions):
        alone.round()
    seconds, floors = [], []
    for _ in range(sizes.rounds):
        before = len(alone.outputs(sessions[0]))
        began = now()
        for _ in range(sizes.steps):
            alone.round()
        seconds.append((now() - began) / sizes.steps)
        floors.append(decode_bytes(alone.runner.spec, batch, sizes.context + before + sizes.steps / 2) / peak)
    assert all(len(alone.outputs(session)) < sizes.decoded(batch) for session in sessions), (
        "all decoded all the time"
    )
    while alone.round():
        pass
    taken = Seconds(statistics.median(seconds), min(seconds), max(seconds))
    measured.add(f"model_decode_tokens_per_s_b{batch}", "tokens/s", batch, taken)
    measured.add(f"model_decode_floor_share_b{batch}", "1", statistics.mean(floors), taken)


def _beside(
    sizes: Sizes, alone: Alone, peer: Transformers, now: Callable[[], float], measured: Measured
) -> None:
    """Tokens of output a second, and how many times the peer's; the order turns with each round."""
    prompt = tuple(1 + at % 1000 for at in range(sizes.prompt))
    jobs = [Job((*prompt[:-1], 1 + number), sizes.output) for number in range(sizes.requests)]
    contenders = {"penstock": alone.run, "continuous": peer.continuous}
    for contender in contenders.values():
        contender(jobs[:2])  # warm
    seconds: dict[str, list[float]] = {which: [] for which in contenders}
    for turn in range(sizes.rounds):
        for which in sorted(contenders, reverse=turn % 2 == 0):
            gc.collect()
            began = now()
            outputs = contenders[which](jobs)
            seconds[which].append(now() - began)
            assert [len(output) for output in outputs] == [sizes.output] * len(jobs)
    ratios = [theirs / ours for ours, theirs in zip(seconds["penstock"], seconds["continuous"], strict=True)]
    for which, spent in seconds.items():
        taken = Seconds(statistics.median(spent), min(spent), max(spent))
        tokens = len(jobs) * sizes.output
        measured.add(f"model_tokens_per_s_{which}", "tokens/s", tokens, taken)
    key = "model_ratio_continuous"
    measured.figures[key], measured.units[key] = statistics.median(ratios), "1"
    measured.spread[key] = min(ratios), max(ratios)
