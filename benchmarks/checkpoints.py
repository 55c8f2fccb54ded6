"""Small random checkpoints of every supported family, made by `transformers` itself."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..engine.config import EngineConfig
from ..engine.families import FAMILIES

# At the library's default of 0.02 a random model repeats one token and would not notice damage to its KV.
INITIALIZER_RANGE = 0.08
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_SIZES = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
# What a family's own defaults would make large.
_FAMILY_SIZES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 96},
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"tie_word_embeddings": False, "rope_parameters": _LLAMA3_ROPE}),
    ("mistral", {"sliding_window": 256, "head_dim": 48}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("mixtral", {"tie_word_embeddings": False}),
    ("qwen3_moe", {"norm_topk_prob": True, "tie_word_embeddings": False}),
)
"""Every family with something that is its own, to be drawn from."""


def make_checkpoint(
    folder: Path,
    family: str,
    seed: int,
    *,
    shard_size: str = "5GB",
    published_spelling: bool = False,
    fused_experts: bool = False,
    **overrides: Any,
) -> Path:
    """Writes a random model of `family` to `folder` and returns it.

    `overrides` are fields of the family's config. Norms and biases, which the library starts at ones and zeros, are
    drawn as well, so that a missing one shows. `published_spelling` writes `rope_theta`, `rope_scaling` and
    `num_experts`, as checkpoints on the Hub have them, for the library's own `rope_parameters` and
    `num_local_experts`; `fused_experts` keeps all experts of a layer in one tensor. The embedded checkpoint's
    tokenizer is added where there is one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; there are {', '.join(FAMILIES)}")
    config = AutoConfig.for_model(
        family,
        initializer_range=INITIALIZER_RANGE,
        dtype="float32",
        **{**_SIZES, **_FAMILY_SIZES.get(family, {}), **overrides},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for vector in (tensor for tensor in model.parameters() if tensor.dim() == 1):
                vector.add_(torch.randn_like(vector), alpha=0.1)
    model.save_pretrained(folder, max_shard_size=shard_size, save_original_format=not fused_experts)
    if published_spelling:
        _publish(folder / "config.json")
    _copy_tokenizer(folder)
    return folder


def _publish(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    path.write_text(json.dumps(config, indent=2))


def _copy_tokenizer(folder: Path) -> None:
    embedded = EngineConfig().folder
    for name in _TOKENIZER_FILES:
        if (embedded / name).is_file():
            shutil.copyfile(embedded / name, folder / name)
