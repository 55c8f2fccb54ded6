"""The shares of a layer sum to the layer, whatever the family and the number of ranks."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.checkpoint import read_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.layout import CacheLayout
from penstock.engine.rank import Place, RankModel
from penstock.engine.step import StepItem

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped_heads": ("llama", {"tie_word_embeddings": False}),
    "one_kv_head_for_all": ("llama", {"num_key_value_heads": 1}),
    "a_kv_head_for_each": ("llama", {"num_key_value_heads": 4}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qkv_biases": ("qwen2", {}),
    "norms_of_heads": ("qwen3", {"attention_bias": True}),
    "window": ("mistral", {"sliding_window": 24, "head_dim": 48}),
    "mixture": ("mixtral", {}),
    "mixture_beside_dense": ("qwen3_moe", {"mlp_only_layers": [0]}),
}
FIRST = [StepItem([7], 0, [9]), StepItem(range(10, 60), 0, [3, 1, 2, 8])]
SECOND = [StepItem([8], 1, [9]), StepItem(range(60, 64), 50, [3, 1, 2, 8])]


class Sum:
    """All-reduce between the threads of one process."""

    def __init__(self, ranks: int) -> None:
        self._parts: list[torch.Tensor] = []
        self._met = threading.Barrier(ranks)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.clone()
        self._parts.append(mine)
        self._met.wait(10)
        x.copy_(sum(self._parts))  # type: ignore[arg-type]
        if self._met.wait(10) == 0:
            self._parts = []
        self._met.wait(10)
        return x


def logits(folder: Path, ranks: int) -> torch.Tensor:
    """Of two steps, the second of which reads what the first stored."""
    config, spec = EngineConfig(model=str(folder), device="cpu"), read_checkpoint(folder)
    layout, total = spec.cache_layout(10, 16, "float32"), Sum(ranks)
    outs: list[torch.Tensor] = []

    @torch.inference_mode()
    def run(rank: int) -> None:
        model = RankModel(config, spec, layout, Place(rank, ranks, "cpu", "float32"), None, total)
        hidden = [model.forward(FIRST), model.forward(SECOND)]
        if rank == 0:
            outs.append(model.model.logits(torch.cat(hidden)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outs[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shares_give_the_logits_of_the_whole_to_rounding(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    folder = make_checkpoint(tmp_path, family, seed=3, **overrides)
    whole = logits(folder, 1)
    for ranks in (2, 4):
        assert (logits(folder, ranks) - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize(
    "family, ranks, says",
    [
        ("llama", 3, "3 does not divide the model's num_attention_heads 4"),
        ("llama", 8, "8 does not divide the model's num_attention_heads 4"),
        ("qwen3_moe", 2, "2 does not divide the model's moe_intermediate_size 33"),
    ],
)
def test_a_model_that_cannot_be_divided_so_is_refused(
    family: str, ranks: int, says: str, tmp_path: Path
) -> None:
    sizes = {"moe_intermediate_size": 33} if family == "qwen3_moe" else {}
    spec = read_checkpoint(make_checkpoint(tmp_path, family, seed=1, **sizes))
    with pytest.raises(ValueError, match=f"engine.tensor_parallel: {says}"):
        spec.share(ranks)


def test_heads_that_neither_divide_nor_are_divided_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", seed=1, num_attention_heads=8, num_key_value_heads=1)
    spec = replace(read_checkpoint(folder), heads=12, kv_heads=3)
    with pytest.raises(ValueError, match="2 neither divides the model's 3 key-value heads nor"):
        spec.share(2)


def test_what_all_ranks_hold_of_a_block_counts_replicas(tmp_path: Path) -> None:
    spec = read_checkpoint(make_checkpoint(tmp_path, "llama", seed=1))
    one = spec.block_bytes(16, "float32")
    assert [spec.block_bytes(16, "float32", ranks) for ranks in (1, 2, 4)] == [one, one, 2 * one]


@pytest.mark.parametrize("kv_heads, ranks", [(8, 1), (8, 2), (8, 8), (2, 4), (1, 4)])
def test_every_head_is_held_and_neighbours_hold_neighbours(kv_heads: int, ranks: int) -> None:
    layout = CacheLayout(layers=1, blocks=1, block_size=16, kv_heads=kv_heads, head_dim=4, dtype="float32")
    held = [range(kv_heads)[layout.held_heads(rank, ranks)] for rank in range(ranks)]
    assert {head for part in held for head in part} == set(range(kv_heads))
    assert all(len(part) == layout.share(ranks).kv_heads for part in held)
    assert sorted(held, key=lambda part: part.start) == held
