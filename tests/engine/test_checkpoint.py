"""config.json of every family in either spelling, and one clear sentence for what cannot be served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.checkpoint import ModelSpec, read_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.families import FAMILIES, read_architecture, with_defaults


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", seed=1, shard_size="700KB")


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def edit(folder: Path, *removed: str, **changed: Any) -> Path:
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in removed}
    path.write_text(json.dumps({**config, **changed}))
    return folder


def edit_to(folder: Path, family: str, **changed: Any) -> ModelSpec:
    return read_checkpoint(edit(folder, model_type=family, **changed))


def test_sizes_are_read(llama: Path) -> None:
    spec = read_checkpoint(llama)
    sizes = (spec.family, spec.vocab, spec.hidden, spec.layers, spec.heads, spec.kv_heads, spec.head_dim)
    assert sizes == ("llama", 4096, 128, 2, 4, 2, 32)
    assert (spec.max_positions, spec.tied, spec.windows) == (16384, True, (None, None))


def test_block_bytes_count_keys_and_values_of_all_layers(llama: Path) -> None:
    spec = read_checkpoint(llama)
    assert spec.block_bytes(16, "float32") == 2 * 2 * 16 * 2 * 32 * 4
    assert spec.block_bytes(16, "bfloat16") == spec.block_bytes(16, "float32") // 2
    assert EngineConfig(kv_bytes=1 << 20).block_count(spec.block_bytes(16, "float32")) == 64
    with pytest.raises(ValueError, match="holds no block"):
        EngineConfig(kv_bytes=100).block_count(spec.block_bytes(16, "float32"))


@pytest.mark.parametrize(("eos", "expected"), [(7, {7}), ([7, 9], {7, 9}), (None, {3})])
def test_end_tokens_come_from_the_generation_config_first(folder: Path, eos: Any, expected: set[int]) -> None:
    edit(folder, eos_token_id=3)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert read_checkpoint(folder).eos == expected


def test_end_tokens_without_a_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert read_checkpoint(edit(folder, eos_token_id=[4, 5])).eos == {4, 5}
    assert read_checkpoint(edit(folder, eos_token_id=None)).eos == set()


def test_both_spellings_of_rope_mean_the_same(folder: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    new = read_checkpoint(edit(folder, rope_parameters={**scaling, "rope_theta": 5e5})).rope
    old = read_checkpoint(edit(folder, "rope_parameters", rope_theta=5e5, rope_scaling=scaling)).rope
    legacy = {"type": "linear", "factor": 2}
    assert new == old
    assert (new.kind, new.theta, new.original_max_positions) == ("llama3", 5e5, 8192)
    assert read_checkpoint(edit(folder, "rope_parameters", rope_scaling=legacy)).rope.kind == "linear"


def test_windows_of_each_family(folder: Path) -> None:
    assert edit_to(folder, "llama", sliding_window=8).windows == (None, None)
    assert edit_to(folder, "mistral", sliding_window=8).windows == (8, 8)
    assert edit_to(folder, "mistral", sliding_window=None).windows == (None, None)
    assert edit_to(folder, "qwen2", sliding_window=8).windows == (None, None)
    used = {"sliding_window": 8, "use_sliding_window": True}
    assert edit_to(folder, "qwen2", **used, max_window_layers=1).windows == (None, 8)
    kinds = ["sliding_attention", "full_attention"]
    assert edit_to(folder, "qwen3", **used, layer_types=kinds).windows == (8, None)


def test_a_silent_config_means_what_it_means_to_transformers(folder: Path) -> None:
    edit(folder, "sliding_window", "num_key_value_heads", num_attention_heads=8, max_position_embeddings=None)
    edit(folder, "max_position_embeddings")
    spec = edit_to(folder, "mistral")
    assert (spec.windows, spec.kv_heads, spec.max_positions) == ((4096, 4096), 8, 131072)


SILENT = (
    {"num_attention_heads": 32, "hidden_size": 512, "num_hidden_layers": 30},
    {"num_attention_heads": 32, "hidden_size": 512, "num_hidden_layers": 30, "use_sliding_window": True},
)


@pytest.mark.parametrize("given", SILENT, ids=("plain", "windowed"))
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_means_what_transformers_takes_it_to_mean(
    family: str, given: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    config = {"model_type": family, "vocab_size": 512, "intermediate_size": 64, **given}
    meant = AutoConfig.for_model(**config)
    found = read_architecture(with_defaults(config))
    head_dim = getattr(meant, "head_dim", None) or 16
    assert (found["kv_heads"], found["head_dim"]) == (meant.num_key_value_heads, head_dim)
    assert (found["norm_eps"], found["max_positions"]) == (meant.rms_norm_eps, meant.max_position_embeddings)
    assert (found["rope"].theta, found["rope"].kind) == (meant.rope_parameters["rope_theta"], "default")
    assert (found["tied"], found["output_bias"]) == (False, False)
    window = getattr(meant, "sliding_window", None)
    kinds = getattr(meant, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * 30
    assert found["windows"] == tuple(window if kind == "sliding_attention" else None for kind in kinds)
    mixture = found["mixture"]
    assert (mixture is None) == (not hasattr(meant, "num_experts"))
    if mixture is not None:
        assert (mixture.experts, mixture.per_token) == (meant.num_experts, meant.num_experts_per_tok)
        assert mixture.intermediate == getattr(meant, "moe_intermediate_size", meant.intermediate_size)
        assert mixture.normalised == getattr(meant, "norm_topk_prob", True)
        assert mixture.layers == (True,) * 30


def test_which_layers_of_a_mixture_are_dense() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 9}

    def sparse(**changed: Any) -> tuple[bool, ...]:
        config = with_defaults({"model_type": "qwen3_moe", "num_hidden_layers": 4, **sizes, **changed})
        return read_architecture(config)["mixture"].layers

    assert sparse(mlp_only_layers=[0, 2]) == (False, True, False, True)
    assert sparse(decoder_sparse_step=2) == (False, True, False, True)
    assert sparse(decoder_sparse_step=2, mlp_only_layers=[3]) == (False, True, False, False)


def test_fingerprints_tell_models_apart(folder: Path, llama: Path, tmp_path: Path) -> None:
    print_ = read_checkpoint(llama).fingerprint
    assert read_checkpoint(folder).fingerprint == print_
    other = make_checkpoint(tmp_path / "other", "llama", seed=2, shard_size="700KB")
    assert read_checkpoint(other).fingerprint != print_
    assert read_checkpoint(edit(folder, rms_norm_eps=1e-5)).fingerprint != print_


BAD_CONFIGS = {
    "family": (
        {"model_type": "gpt2"},
        r"family 'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3, mixtral, qwen3_moe$",
    ),
    "no_family": ({"model_type": None}, "family None is not supported"),
    "rope": (
        {"rope_parameters": {"rope_type": "longrope"}},
        r"'longrope' is not supported; supported: default",
    ),
    "rope_fields": (
        {"rope_parameters": {"rope_type": "llama3", "factor": 2}},
        "needs low_freq_factor, high_freq",
    ),
    "rope_partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "rope_number": ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta must be a number, got 'big'"),
    "hidden": ({"hidden_size": "128"}, "hidden_size must be a positive integer, got '128'"),
    "layers": ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
    "heads": ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3"),
    "head_dim": ({"head_dim": 33}, "head_dim must be even, got 33"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized checkpoints are not supported"),
    "layer_types": (
        {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
        "layer_types must name",
    ),
    "layer_types_unwindowed": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types names sliding_attention, but use_sliding_window",
    ),
    "layer_types_ignored": (
        {
            "model_type": "mistral",
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "layer_types of mistral are not supported unless all are sliding_attention",
    ),
    "rope_theta": ({"rope_parameters": {"rope_theta": 0}}, "rope_theta must be above 0, got 0"),
    "rope_factor": (
        {"rope_parameters": {"rope_type": "linear", "factor": -2}},
        "factor must be above 0, got -2",
    ),
    "rope_nested": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope parameters of their own for full_attention are not supported",
    ),
    "eps": ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number above 0, got 'small'"),
    "too_few_experts": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5},
        "num_experts_per_tok is 5, but there are 4 experts only",
    ),
    "no_experts": (
        {"model_type": "qwen3_moe", "num_experts": 0},
        "num_experts must be a positive integer, got 0",
    ),
    "sparse_step": (
        {"model_type": "qwen3_moe", "decoder_sparse_step": 0},
        "decoder_sparse_step must be a positive",
    ),
    "dense_layers": (
        {"model_type": "qwen3_moe", "mlp_only_layers": "all"},
        "mlp_only_layers must be a list of layers, got 'all'",
    ),
    "eos": ({"eos_token_id": ["</s>"]}, "eos_token_id must be a token id"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_one_clear_sentence(case: str, folder: Path) -> None:
    changed, message = BAD_CONFIGS[case]
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(edit(folder, **changed))


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    for damaged in (whole[:-100], whole[:5], b"", b"\xff" * 100, whole + b"\0"):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{shard.name} is truncated"):
            read_checkpoint(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        read_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        read_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing"):
        read_checkpoint(folder)
    with pytest.raises(ValueError, match="no checkpoint folder"):
        read_checkpoint(folder / "nowhere")


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "fp8"), ("device", "tpu"), ("transport", "carrier"), ("block_size", 0), ("kv_blocks", -1)]
    + [("threads", True), ("block_size", 1.5), ("model", "")],
)
def test_a_bad_engine_config_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"engine.{field} must be"):
        EngineConfig(**{field: value})
