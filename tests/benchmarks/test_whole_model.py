"""The whole model's figures follow from its shape, its seconds and the peaks; engine and peer do what they do."""

import itertools

import pytest
import torch

from penstock.benchmarks import whole_model
from penstock.benchmarks.kernels import Seconds
from penstock.benchmarks.whole_model import LLAMA_8B, Sizes, decode_bytes, matrix_weights, prefill_operations
from penstock.policy.batching import Budget

TINY = Sizes(
    config={
        **LLAMA_8B,
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
    },
    prefills=(5, 20),
    batches=(1, 3),
    context=9,
    steps=4,
    rounds=2,
    requests=3,
    prompt=10,
    output=6,
    role=Budget(16, 4),
)
PEAKS = {"matmul_tflops": 2.0, "copy_tbps": 0.5}


def test_the_shape_is_that_of_an_8b_model():
    spec = Sizes().spec
    assert matrix_weights(spec) == 32 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    total = matrix_weights(spec) + 2 * spec.vocab * spec.hidden
    assert total == pytest.approx(8.03e9, rel=1e-3)
    assert decode_bytes(spec, 1, 0) == pytest.approx(2 * (total - spec.vocab * spec.hidden))
    assert decode_bytes(spec, 64, 1024) - decode_bytes(spec, 1, 0) == 64 * 1024 * 128 * 1024
    assert prefill_operations(spec, 2048) == pytest.approx(2 * 6.98e9 * 2048 + 1.1e12, rel=1e-2)


def test_random_weights_are_of_the_shape_that_is_counted():
    weights = whole_model.random_weights(TINY.spec, torch.bfloat16, torch.device("cpu"))
    counted = sum(
        matrix.numel()
        for layer in weights.layers
        for matrix in (layer.qkv, layer.output, layer.feed_forward.gate_up, layer.feed_forward.down)  # type: ignore[union-attr]
    )
    assert counted == matrix_weights(TINY.spec)


def test_every_figure_follows_from_bytes_operations_and_seconds():
    """Each reading of the clock is a second after the one before."""
    ticks = itertools.count()
    prefill = Seconds(0.5, 0.25, 1.0)

    def clock(work) -> Seconds:
        work()
        return prefill

    report = whole_model.run(TINY, torch.device("cpu"), PEAKS, clock, lambda: float(next(ticks)))
    spec = TINY.spec
    for tokens in (5, 20):
        expected = prefill_operations(spec, tokens) / 2e12 / 0.5
        assert report.figures[f"model_prefill_share_n{tokens}"] == pytest.approx(expected)
    for batch in (1, 3):
        assert report.figures[f"model_decode_tokens_per_s_b{batch}"] == batch * TINY.steps
        share = report.figures[f"model_decode_floor_share_b{batch}"] / TINY.steps * 0.5e12
        assert decode_bytes(spec, batch, 9) < share < decode_bytes(spec, batch, 9 + TINY.decoded(batch))
    assert report.figures["model_tokens_per_s_penstock"] == 3 * 6
    assert report.figures["model_ratio_continuous"] == 1
    assert len(report.figures) == 2 + 4 + 3
