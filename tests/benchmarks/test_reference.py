"""The reference's one pass over given tokens is `transformers` generating token by token."""

from pathlib import Path

import pytest
import torch

from penstock.benchmarks.checkpoints import VARIANTS, make_checkpoint
from penstock.benchmarks.compare import compare
from penstock.benchmarks.reference import BLOCK_SIZE, Reference, garble

TOKENS = 60
PROMPT = [(7 * i) % 501 for i in range(300)]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant[0])
def reference(request, tmp_path_factory) -> Reference:
    family, fields = request.param
    folder: Path = tmp_path_factory.mktemp(family)
    return Reference(make_checkpoint(folder, family, seed=11, hidden_size=64, **fields))


@pytest.fixture(scope="module")
def generated(reference) -> list[int]:
    ids = reference.model.generate(
        torch.tensor([PROMPT]),
        do_sample=False,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        eos_token_id=None,
    )
    return ids[0, len(PROMPT) :].tolist()


def test_one_pass_chooses_what_generate_chooses(reference, generated):
    logits = reference.logits(PROMPT, generated)
    assert logits.argmax(dim=-1).tolist() == generated
    assert compare(generated, logits, 0.0, 0).mismatched == 0


def test_a_stream_that_departs_from_generate_is_found_where_it_departs(reference, generated):
    altered = [*generated[:25], (generated[25] + 1) % 500, *generated[26:]]
    assert compare(altered, reference.logits(PROMPT, altered), 0.0, 0).mismatched == TOKENS - 25


@pytest.mark.parametrize("at, block", [(1, 3), (20, 10**9)])
def test_one_pass_over_a_damaged_cache_departs_where_free_running_does(reference, generated, at, block):
    logits = reference.damaged_logits(PROMPT, generated, at, block)
    assert len(logits) == TOKENS - at
    departs = compare(generated[at:], logits, 0.0, 0, first=at).mismatched
    free = free_run(reference, generated, at, block)
    same = next((i for i in range(TOKENS - at) if free[i] != generated[at + i]), TOKENS - at)
    assert departs == TOKENS - at - same


def free_run(reference: Reference, generated: list[int], at: int, block: int) -> list[int]:
    """Greedy tokens from `at` on, one pass each, from a cache whose block was garbled."""
    seen = [*PROMPT, *generated[:at]]
    tokens = []
    with torch.inference_mode():
        cache = reference.model(torch.tensor([seen[:-1]])).past_key_values
        for layer in cache.layers:
            blocks = -(-layer.keys.shape[-2] // BLOCK_SIZE)
            for half in (layer.keys, layer.values):
                garble(half, block % blocks * BLOCK_SIZE, block)
        last = seen[-1]
        while len(tokens) < TOKENS - at:
            out = reference.model(torch.tensor([[last]]), past_key_values=cache)
            last = int(out.logits[0, -1].argmax())
            tokens.append(last)
    return tokens
