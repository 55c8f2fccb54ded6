"""The reference: `transformers` in float32, in one process, and what it takes the next token to be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

BLOCK_SIZE = 16
"""Positions of a KV block, for damage."""


class Reference:
    """A checkpoint in `transformers`. One sequence at a time: a long prompt fills the cores by itself."""

    def __init__(self, folder: Path):
        """`OSError` or `ValueError` where `transformers` cannot load it."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model: Any = model.eval()

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """Row i is what the next token is chosen from after `prompt + output[:i]`: `[len(output), vocabulary]`.

        One forward pass over tokens that are given. Where each of them is the choice of its row, generating token by
        token gives the same tokens, by induction over i.
        """
        ids = torch.tensor([[*prompt, *output[:-1]]])
        return self.model(ids, logits_to_keep=len(output), use_cache=False).logits[0]

    @torch.inference_mode()
    def damaged_logits(
        self, prompt: Sequence[int], output: Sequence[int], at: int, block: int
    ) -> torch.Tensor:
        """`logits` from row `at` on, `[len(output) - at, vocabulary]`, where one KV block is wrong from there on.

        The block is the `block`-th, modulo their number, of those that the cache holds when token `at` is chosen; it
        holds what a stale read would find there: keys and values that look like others, and are not these.
        """
        ids = torch.tensor([[*prompt, *output[:-1]]])
        seen = len(prompt) + at - 1
        cache = self.model(ids[:, :seen], use_cache=True, logits_to_keep=1).past_key_values
        for layer in cache.layers:
            held = layer.keys.shape[-2]
            start = block % -(-held // BLOCK_SIZE) * BLOCK_SIZE
            for half in (layer.keys, layer.values):
                garble(half, start, block)
        return self.model(ids[:, seen:], past_key_values=cache, logits_to_keep=len(output) - at).logits[0]


def garble(half: torch.Tensor, start: int, seed: int) -> None:
    """Overwrite one block of a layer's keys or values `[1, heads, tokens, dim]` with noise like it."""
    hurt = half[:, :, start : start + BLOCK_SIZE]
    noise = torch.randn(hurt.shape, generator=torch.Generator().manual_seed(seed))
    hurt.copy_(noise * half.std(dim=2, keepdim=True) + half.mean(dim=2, keepdim=True))
