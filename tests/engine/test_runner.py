"""A step feeds what it is told, writes only where it may, and samples where asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.memory import SharedMemory
from penstock.engine.runner import Runner, SampleSpec, StepItem
from penstock.engine.sampler import sample
from penstock.kernels import attention, sharing

GREEDY = SampleSpec(0.0, 0, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama", seed=1)


def make(folder: Path, **config: object) -> Runner:
    return Runner(EngineConfig(model=str(folder), device="cpu", kv_blocks=32, **config))  # type: ignore[arg-type]


def test_results_stand_in_the_order_of_the_items(folder: Path) -> None:
    runner = make(folder)
    chunk, one, silent = (
        StepItem(range(10, 40), 0, [4, 5], GREEDY),
        StepItem([7], 0, [9], GREEDY),
        StepItem([7, 8], 0, [11], None),
    )
    alone = [runner.step([item])[0] for item in (chunk, one, silent)]
    assert alone[2] is None and alone[0] is not None
    assert runner.step([silent, chunk, one]) == [alone[2], alone[0], alone[1]]
    assert runner.step([one, silent, chunk]) == [alone[1], alone[2], alone[0]]
    assert runner.step([]) == []


def test_a_step_takes_tokens_that_the_one_before_it_is_still_drawing(folder: Path) -> None:
    """The host's value in the item is another, and does not count; chunks and known tokens stand beside it."""
    told, ahead = make(folder), make(folder)
    seeded = [SampleSpec(0.9, 5, 0, position) for position in range(2)]
    items = [StepItem([3, 4, 5], 0, [9], None), StepItem(range(20, 50), 0, [4, 5], seeded[0])]
    items += [StepItem([8], 0, [2], GREEDY)]
    _, first, second = told.step(items)
    assert first is not None and second is not None and first != second

    known = [
        StepItem([second], 1, [2], GREEDY),
        StepItem([6, 7], 3, [9], GREEDY),
        StepItem([first], 30, [4, 5], seeded[1]),
    ]
    flight = ahead.launch(items)
    unknown = [replace(item, tokens=[0], follows=at) for item, at in zip(known, (2, None, 1), strict=True)]
    unknown[1] = known[1]
    assert ahead.launch(unknown, flight).result() == told.step(known)
    assert flight.result() == [None, first, second]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_lets_others_in_between_the_parts_of_every_layer(folder: Path, ranks: int) -> None:
    runner = make(folder, tensor_parallel=ranks)
    calls: list[None] = []
    item = StepItem(range(20, 50), 0, [4, 5], GREEDY)
    try:
        flight = runner.launch([item], None, lambda: calls.append(None))
        assert len(calls) == 2 * runner.spec.layers and flight.result() == runner.step([item])
    finally:
        runner.close()


def test_a_prefix_read_once_for_its_group_gives_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two groups, one of them out of neighbours, beside sequences that share too little or nothing."""
    merged = []
    merge = attention.merge_segments
    monkeypatch.setattr(attention, "merge_segments", lambda parts: merged.append(parts) or merge(parts))
    outcomes = []
    for saved in (1 << 40, 2 * 48 * 2 * 2 * 32 * 4):  # of 48 tokens in one sequence of this model, twice
        monkeypatch.setitem(sharing.SAVED_BYTES, "cpu", saved)
        runner = make(folder)
        prompt, other = list(range(100, 164)), list(range(300, 364))
        runner.step([StepItem(prompt, 0, [7, 3, 20, 1], None), StepItem(other, 0, [5, 6, 9, 2], None)])
        tails = [([7, 3, 20, tail], 60) for tail in (11, 12, 13)] + [([5, 6, tail], 40) for tail in (21, 22)]
        for table, start in tails:
            ids = prompt if table[0] == 7 else other
            whole = len(table) - 1
            runner.step([StepItem(ids[16 * whole : start], 16 * whole, table, None)])
        items = [StepItem([50 + at], start, table, GREEDY) for at, (table, start) in enumerate(tails)]
        items.insert(1, StepItem([9], 0, [30], GREEDY))
        outcomes.append((runner.step(items), len(merged)))
    (apart, before), (together, after) = outcomes
    assert together == apart and len(set(together)) > 2
    assert (before, after) == (0, runner.spec.layers)


def test_a_step_writes_its_own_slots_and_no_others(folder: Path) -> None:
    runner = make(folder)
    for layer in runner.cache.layers:
        layer.fill_(7.0)
    runner.step([StepItem(range(5), 14, [3, 8], None), StepItem([1], 2, [20], None)])
    written = {(3, 14), (3, 15), (8, 0), (8, 1), (8, 2), (20, 2)}
    for layer in runner.cache.layers:
        changed = (layer != 7.0).flatten(3).any(-1)
        for half in changed:
            assert {(int(block), int(place)) for block, place in half.nonzero()} == written


def test_blocks_moved_to_another_cache_continue_the_sequence(folder: Path) -> None:
    source, destination = make(folder), make(folder)
    prompt = list(range(100, 150))
    (first,) = source.step([StepItem(prompt, 0, [0, 1, 2, 3], GREEDY)])
    assert first is not None
    destination.cache.scatter([9, 30, 2, 17], source.cache.gather([0, 1, 2, 3]))
    stay = source.step([StepItem([first], 50, [0, 1, 2, 3], GREEDY)])
    assert destination.step([StepItem([first], 50, [9, 30, 2, 17], GREEDY)]) == stay


def test_a_damaged_block_changes_the_output(folder: Path) -> None:
    """The model must notice damage, else comparisons of its tokens prove nothing."""
    runner = make(folder)
    prompt = [(17 * i) % 4000 for i in range(64)]

    def continued() -> list[int]:
        tokens = [token := runner.step([StepItem(prompt, 0, [0, 1, 2, 3, 4], GREEDY)])[0] or 0]
        runner.cache.layers[1][:, 2].mul_(damage)
        for position in range(64, 76):
            tokens.append(
                token := runner.step([StepItem([token], position, [0, 1, 2, 3, 4], GREEDY)])[0] or 0
            )
        return tokens

    damage = 1.0
    whole = continued()
    damage = 0.0
    assert continued() != whole


def test_sampling_equals_the_reference_with_the_same_draws(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    runner = make(folder)
    tokens, prompt, fed = [5, 900, 31], 3, 0
    for position in range(40):
        spec = SampleSpec(0.8, seed=1234, choice=2, position=position)
        (token,) = runner.step([StepItem(tokens[fed:], fed, [6, 1, 30], spec)])
        assert token is not None
        fed = len(tokens)
        tokens.append(token)
    with torch.inference_mode():
        logits = model(torch.tensor([tokens[:-1]])).logits[0, prompt - 1 :]
    assert (
        tokens[prompt:]
        == sample(logits, [SampleSpec(0.8, 1234, 2, position) for position in range(40)]).tolist()
    )


def test_the_cache_may_be_memory_of_the_caller(folder: Path) -> None:
    plain = make(folder)
    memory = SharedMemory.create(plain.layout.total_bytes)
    config = EngineConfig(model=str(folder), device="cpu", kv_blocks=32)
    shared = Runner(config, memory=memory)
    item = StepItem(range(30), 0, [7, 3], GREEDY)
    assert shared.step([item]) == plain.step([item])
    assert any(memory.buffer)
    memory.close()


def test_kv_blocks_follow_the_memory_given(folder: Path) -> None:
    runner = Runner(EngineConfig(model=str(folder), device="cpu", kv_bytes=1 << 20))
    assert runner.layout.total_bytes == 1 << 20
    assert runner.layout.dtype == "float32"


@pytest.mark.parametrize("asked", [{"kv_blocks": 10**12}, {"kv_bytes": 1 << 60}, {"host_kv_bytes": 1 << 60}])
def test_more_memory_than_the_machine_has_is_refused_before_any_is_taken(folder: Path, asked: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(asked))}.* ask for [0-9]+ bytes"):
        Runner(EngineConfig(model=str(folder), device="cpu", **asked))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no usable GPU"):
        Runner(EngineConfig(model=str(folder), device="cuda"))
