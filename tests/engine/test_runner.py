"""A step feeds what it is told, writes only where it may, and samples where asked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.memory import SharedMemory
from penstock.engine.runner import Runner, SampleSpec, StepItem
from penstock.engine.sampler import sample

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
    assert tokens[prompt:] == sample(logits, [SampleSpec(0.8, 1234, 2, position) for position in range(40)])


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
