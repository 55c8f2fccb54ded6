"""Greedy float32 output equals that of `transformers`, token for token, whatever the schedule."""

import random
from pathlib import Path

import pytest
import torch

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.runner import Runner, SampleSpec, StepItem

TIE = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_TUNED = {
    **YARN,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "mscale": 0.8,
    "mscale_all_dim": 0.5,
    "truncate": False,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
UNTIED = {"tie_word_embeddings": False}
MIXED_LAYERS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

VARIANTS = {
    "llama": ("llama", {}),
    "llama_untied": ("llama", {"tie_word_embeddings": False}),
    "llama_biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_head_dim": ("llama", {"head_dim": 48}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "llama_all_kv_heads": ("llama", {"num_key_value_heads": 4}),
    "llama_llama3_rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama_llama3_rope_published": ("llama", {"rope_parameters": LLAMA3, "published_spelling": True}),
    "llama_linear_rope": ("llama", {"rope_parameters": LINEAR}),
    "llama_dynamic_rope": ("llama", {"rope_parameters": DYNAMIC}),
    "llama_yarn_rope": ("llama", {"rope_parameters": YARN}),
    "qwen2_yarn_rope_published": ("qwen2", {"rope_parameters": YARN_TUNED, "published_spelling": True}),
    "llama_theta_published": (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "published_spelling": True},
    ),
    "llama_sharded": ("llama", {"shard_size": "700KB"}),
    "mistral_no_window": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 24}),
    "mistral_window_of_one": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2_mixed_windows": ("qwen2", MIXED_LAYERS),
    "qwen3": ("qwen3", {}),
    "qwen3_biases_untied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": False}),
    "qwen3_mixed_windows": ("qwen3", MIXED_LAYERS),
    "qwen3_layer_types": ("qwen3", {**MIXED_LAYERS, "layer_types": ["sliding_attention", "full_attention"]}),
    "llama_swish": ("llama", {"hidden_act": "swish"}),
    "mixtral": ("mixtral", {}),
    "mixtral_window": ("mixtral", {"sliding_window": 24, "tie_word_embeddings": False}),
    "mixtral_one_expert_of_five": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 1}),
    "mixtral_every_expert": ("mixtral", {"num_experts_per_tok": 4}),
    "mixtral_sharded": ("mixtral", {"shard_size": "700KB", "head_dim": 48}),
    "mixtral_fused_experts": ("mixtral", {"fused_experts": True}),
    "qwen3_moe": ("qwen3_moe", UNTIED),
    "qwen3_moe_normalised": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe_published": ("qwen3_moe", {**UNTIED, "published_spelling": True}),
    "qwen3_moe_every_second": ("qwen3_moe", {**UNTIED, "decoder_sparse_step": 2, "num_hidden_layers": 3}),
    "qwen3_moe_first_dense": ("qwen3_moe", {"mlp_only_layers": [0], "attention_bias": True}),
    "qwen3_moe_window": ("qwen3_moe", {**UNTIED, "use_sliding_window": True, "sliding_window": 24}),
    "qwen3_moe_fused_experts": ("qwen3_moe", {**UNTIED, "fused_experts": True}),
}


class Stream:
    """One sequence under a random schedule, on blocks of its own."""

    def __init__(self, prompt: list[int], table: list[int], wanted: int) -> None:
        self.tokens = list(prompt)
        self.prompt = len(prompt)
        self.table = table
        self.wanted = wanted
        self.fed = 0

    @property
    def done(self) -> bool:
        return len(self.tokens) - self.prompt >= self.wanted

    def next_item(self, chunk: int) -> StepItem:
        tokens = self.tokens[self.fed : self.fed + chunk]
        last = self.fed + len(tokens) == len(self.tokens)
        spec = SampleSpec(0.0, 0, 0, len(self.tokens) - self.prompt) if last else None
        return StepItem(tokens, self.fed, self.table, spec)

    def take(self, item: StepItem, token: int | None) -> None:
        self.fed += len(item.tokens)
        if token is not None:
            self.tokens.append(token)


def run(runner: Runner, streams: list[Stream], random_: random.Random, chunks: tuple[int, ...]) -> None:
    """Steps until all are done; each step takes a random part of the streams with chunks of random sizes."""
    while waiting := [stream for stream in streams if not stream.done]:
        picked = [stream for stream in waiting if random_.random() < 0.8] or waiting[:1]
        random_.shuffle(picked)
        items = [stream.next_item(random_.choice(chunks)) for stream in picked]
        for stream, item, token in zip(picked, items, runner.step(items), strict=True):
            stream.take(item, token)


def tables(random_: random.Random, blocks: int, needs: list[int]) -> list[list[int]]:
    """Block tables: one whole, one in scattered single blocks, others in runs of several."""
    free = list(range(blocks))
    out = []
    for index, need in enumerate(needs):
        size = (need, 1, 10, 3)[index % 4]
        table: list[int] = []
        while len(table) < need:
            first = random_.randrange(len(free))
            take = min(size, need - len(table), len(free) - first)
            table += free[first : first + take]
            del free[first : first + take]
        out.append(table)
    return out


def assert_greedy(model: torch.nn.Module, stream: Stream) -> int:
    """Each token is the reference's own choice after the same tokens; returns how many were ties."""
    with torch.inference_mode():
        logits = model(torch.tensor([stream.tokens[:-1]])).logits[0, stream.prompt - 1 :]
    ties = 0
    for row, token in zip(logits, stream.tokens[stream.prompt :], strict=True):
        best = int(row.argmax())
        if token != best:
            assert row[best] - row[token] < TIE, f"{token} is no tie with {best}"
            ties += 1
    return ties


def reference(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def schedule(folder: Path, seed: int, lengths: list[int], wanted: int, **config: object) -> list[Stream]:
    runner = Runner(EngineConfig(model=str(folder), device="cpu", kv_blocks=160, **config))  # type: ignore[arg-type]
    random_ = random.Random(seed)
    size = runner.layout.block_size
    needs = [-(-(length + wanted) // size) for length in lengths]
    placed = tables(random_, runner.layout.blocks, needs)
    streams = [
        Stream([random_.randrange(runner.spec.vocab) for _ in range(length)], table, wanted)
        for length, table in zip(lengths, placed, strict=True)
    ]
    run(runner, streams, random_, chunks=(1, 3, 7, 16, 33, 200))
    return streams


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_schedule_gives_the_greedy_tokens_of_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    folder = make_checkpoint(tmp_path, family, seed=1, **overrides)
    model = reference(folder)
    streams = schedule(folder, seed=2, lengths=[300, 90, 260, 1, 40], wanted=24)
    assert sum(assert_greedy(model, stream) for stream in streams) <= 1
    assert len({token for stream in streams for token in stream.tokens[stream.prompt :]}) > 20


@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_block_sizes_do_not_change_the_tokens(block_size: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mistral", seed=3, sliding_window=50)
    streams = schedule(folder, seed=4, lengths=[37, 60], wanted=16, block_size=block_size)
    model = reference(folder)
    assert sum(assert_greedy(model, stream) for stream in streams) <= 1


def test_greedy_equals_generate_of_transformers(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", seed=5)
    (stream,) = schedule(folder, seed=6, lengths=[50], wanted=32)
    prompt = torch.tensor([stream.tokens[: stream.prompt]])
    generated = reference(folder).generate(  # type: ignore[operator]
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=None
    )
    assert stream.tokens == generated[0].tolist()


def test_bfloat16_follows_float32_for_a_while(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3", seed=7)
    streams = schedule(folder, seed=8, lengths=[200, 30], wanted=8, dtype="bfloat16")
    model = reference(folder)
    for stream in streams:
        with torch.inference_mode():
            logits = model(torch.tensor([stream.tokens[:-1]])).logits[0, stream.prompt - 1 :]
        chosen = torch.tensor(stream.tokens[stream.prompt :])
        regret = logits.max(-1).values - logits.gather(1, chosen.unsqueeze(1)).squeeze(1)
        assert regret.max() < 0.2 * logits.std()
