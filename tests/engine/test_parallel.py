"""Ranks in processes of their own give the tokens of one rank, and none of them is lost without a word."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.engine.checkpoint import read_checkpoint
from penstock.engine.config import EngineConfig
from penstock.engine.memory import SharedMemory
from penstock.engine.parallel import RankLost, Ranks
from penstock.engine.rank import Place
from penstock.engine.runner import Runner, SampleSpec, StepItem, memory_bytes

GREEDY = SampleSpec(0.0, 0, 0, 0)
TABLES = [[3, 1, 2, 7, 8, 20], [9, 10, 4, 5, 6], [30, 11, 12, 13, 14]]
PROMPTS = [range(10, 60), [7], range(900, 933)]
CHUNK = 20


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", seed=1)


@contextmanager
def runner(folder: Path, ranks: int, **config: object) -> Iterator[Runner]:
    made = Runner(
        EngineConfig(model=str(folder), device="cpu", kv_blocks=32, tensor_parallel=ranks, **config)  # type: ignore[arg-type]
    )
    try:
        yield made
    finally:
        made.close()


def outputs(runner: Runner, tokens: int) -> list[list[int]]:
    """Greedy tokens of three sequences, their prompts in chunks and all in one batch."""
    fed, known = [0] * len(PROMPTS), [list(prompt) for prompt in PROMPTS]
    while any(len(known[n]) - len(prompt) < tokens for n, prompt in enumerate(PROMPTS)):
        ends = [min(len(known[n]), fed[n] + CHUNK) for n in range(len(PROMPTS))]
        items = [
            StepItem(known[n][fed[n] : end], fed[n], TABLES[n], GREEDY if end == len(known[n]) else None)
            for n, end in enumerate(ends)
        ]
        for n, token in enumerate(runner.step(items)):
            fed[n] = ends[n]
            if token is not None:
                known[n].append(token)
    return [ids[len(prompt) : len(prompt) + tokens] for ids, prompt in zip(known, PROMPTS, strict=True)]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_two_ranks_give_the_tokens_of_one(llama: Path) -> None:
    with runner(llama, 1) as one, runner(llama, 2) as two:
        assert outputs(two, 24) == outputs(one, 24)
        assert two.alive and two.layout == one.layout


def test_two_ranks_of_a_mixture_that_share_one_head_give_the_tokens_of_one(tmp_path: Path) -> None:
    shape = {"num_key_value_heads": 1, "tie_word_embeddings": False}
    folder = make_checkpoint(tmp_path, "qwen3_moe", seed=1, **shape)
    with runner(folder, 1) as one, runner(folder, 2) as two:
        assert outputs(two, 16) == outputs(one, 16)


def test_ranks_compute_in_bfloat16_too(llama: Path) -> None:
    with runner(llama, 2, dtype="bfloat16") as two:
        assert two.layout.dtype == "bfloat16"
        assert all(len(tokens) == 3 for tokens in outputs(two, 3))


def ranks(folder: Path, step_s: float) -> Ranks:
    config, spec = EngineConfig(model=str(folder), device="cpu", tensor_parallel=2), read_checkpoint(folder)
    layout = spec.cache_layout(32, 16, "float32")
    memory = SharedMemory.create(memory_bytes(layout, 2))
    return Ranks(config, spec, layout, Place(0, 2, "cpu", "float32"), memory, start_s=60, step_s=step_s)


@pytest.mark.parametrize(
    "number, says",
    [(signal.SIGKILL, r"rank 1 \(process \d+\) ended with code -9"), (signal.SIGSTOP, "answer")],
)
def test_a_lost_rank_ends_all_within_the_deadline_and_is_named(
    llama: Path, number: signal.Signals, says: str
) -> None:
    made = ranks(llama, step_s=1.0)
    made.forward([StepItem(range(10, 20), 0, [1])])
    (pid,) = made.pids
    os.kill(pid, number)
    began = time.monotonic()
    with pytest.raises(RankLost, match=says):
        for position in range(10, 14):
            made.forward([StepItem([5], position, [1])])
    assert time.monotonic() - began < 10
    assert not made.alive and gone(pid)
    made.close()


def test_an_idle_rank_that_dies_shows(llama: Path) -> None:
    with runner(llama, 2) as two:
        assert two.alive and two._ranks is not None
        os.kill(two._ranks.pids[0], signal.SIGKILL)
        until(lambda: not two.alive)


def test_ranks_end_with_the_process_that_started_them(llama: Path) -> None:
    program = f"""
import time
from penstock.engine.config import EngineConfig
from penstock.engine.runner import Runner
runner = Runner(EngineConfig(model={str(llama)!r}, device="cpu", kv_blocks=8, tensor_parallel=2))
print(runner._ranks.pids[0], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid))


def test_a_model_that_ranks_cannot_share_is_refused_before_any_process_starts(llama: Path) -> None:
    with pytest.raises(ValueError, match="engine.tensor_parallel: 3 does not divide"):
        Runner(EngineConfig(model=str(llama), device="cpu", tensor_parallel=3))
