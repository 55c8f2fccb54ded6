"""Weights are read once, checked by name and shape, and refused in one sentence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.checkpoint import read_checkpoint
from penstock.engine.weights import ExpertWeights, ModelWeights, load_weights

CPU = torch.device("cpu")
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path, "qwen3", seed=1)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return load_weights(folder, read_checkpoint(folder), dtype, CPU)


def rewrite(folder: Path, changed: dict[str, torch.Tensor | None]) -> None:
    """Changes, adds or (None) removes tensors of the only file."""
    tensors = {**load_file(folder / "model.safetensors"), **changed}
    save_file(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors"
    )


def test_shards_hold_the_same_weights_as_one_file(tmp_path: Path, folder: Path) -> None:
    sharded = make_checkpoint(tmp_path / "sharded", "qwen3", seed=1, shard_size="700KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    one, many = load(folder), load(sharded)
    assert torch.equal(one.embedding, many.embedding)
    assert all(
        torch.equal(a.qkv, b.qkv) and torch.equal(a.output, b.output)
        for a, b in zip(one.layers, many.layers, strict=True)
    )


def test_weights_take_the_asked_dtype(folder: Path) -> None:
    weights = load(folder, torch.bfloat16)
    layer = weights.layers[0]
    assert layer.qk_norm is not None
    assert {weights.head.dtype, layer.qkv.dtype, layer.qk_norm.dtype} == {torch.bfloat16}


def test_tied_embeddings_are_held_once(folder: Path) -> None:
    weights = load(folder)
    assert weights.head is weights.embedding


def test_a_tied_model_may_carry_its_copy_of_the_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    rewrite(folder, {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert load(folder).head.shape == (4096, 128)


def test_a_missing_tensor_is_named_with_its_shape(folder: Path) -> None:
    rewrite(folder, {GATE: None})
    with pytest.raises(ValueError, match=rf"lacks tensor {GATE} of shape \[256, 128\]"):
        load(folder)


def test_a_wrong_shape_is_named_with_the_right_one(folder: Path) -> None:
    rewrite(folder, {GATE: torch.zeros(256, 127)})
    with pytest.raises(
        ValueError, match=rf"model.safetensors: tensor {GATE} has shape \[256, 127\], expected \[256, 128\]"
    ):
        load(folder)


def test_numbers_of_another_kind_are_refused(folder: Path) -> None:
    rewrite(folder, {GATE: torch.zeros(256, 128, dtype=torch.int16)})
    with pytest.raises(ValueError, match=f"tensor {GATE} is I16; supported: F64, F32, F16, BF16"):
        load(folder)


def test_an_unexpected_tensor_is_refused(folder: Path) -> None:
    rewrite(folder, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128), "x": torch.zeros(1)})
    with pytest.raises(ValueError, match="unexpected tensor model.layers.0.self_attn.q_proj.bias and 1 more"):
        load(folder)


def test_buffers_of_old_checkpoints_are_passed_over(folder: Path) -> None:
    rewrite(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)})
    load(folder)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_the_same_by_themselves_and_in_one_tensor(family: str, tmp_path: Path) -> None:
    each = load(make_checkpoint(tmp_path / "each", family, seed=1))
    fused = load(make_checkpoint(tmp_path / "fused", family, seed=1, fused_experts=True))
    for a, b in zip(each.layers, fused.layers, strict=True):
        assert isinstance(a.feed_forward, ExpertWeights) and isinstance(b.feed_forward, ExpertWeights)
        assert torch.equal(a.feed_forward.router, b.feed_forward.router)
        assert torch.equal(a.feed_forward.gate_up, b.feed_forward.gate_up)
        assert torch.equal(a.feed_forward.down, b.feed_forward.down)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mixtral", seed=1)
    expert = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    rewrite(folder, {expert: None})
    with pytest.raises(ValueError, match=f"lacks tensor {expert}"):
        load(folder)
    rewrite(folder, {expert: torch.zeros(256, 128), expert.replace("3.w3", "4.w1"): torch.zeros(256, 128)})
    with pytest.raises(ValueError, match=r"unexpected tensor model.layers.1.block_sparse_moe.experts.4.w1"):
        load(folder)


def test_a_file_whose_header_lies_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"X32"', 1))
    with pytest.raises(ValueError, match=r"model.safetensors is no readable safetensors file"):
        load(folder)
