"""A step launched before the one before it has landed changes nothing that anybody sees."""

from dataclasses import replace

import pytest

from penstock.benchmarks.alone import ROUTER, Alone
from penstock.engine.config import EngineConfig
from penstock.engine.runner import Runner
from penstock.handover.effects import FromRouter
from penstock.handover.values import Context, Epoch, Revoke, SamplingParams
from penstock.policy.batching import Budget

AHEAD = [
    {},
    {"temperature": 0.0},
    {"top_p": 0.8, "top_k": 50, "min_p": 0.02, "choice": 1},
    {"top_p": 0.8, "top_k": 50, "min_p": 0.02, "choice": 2},
    {"stop_token_ids": tuple(range(300, 420)), "min_tokens": 9},
    {"logit_bias": ((20, 3.0), (33, -100.0)), "logprobs": 2},
    {"max_tokens": 1},
    {"ignore_eos": False, "temperature": 0.3},
]
LOOKING_BACK = [*AHEAD, {"repetition_penalty": 1.2, "temperature": 0.0}, {"presence_penalty": 0.5}]


def contexts(shapes: list[dict]) -> list[Context]:
    defaults = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0}
    return [
        Context(
            tuple((7 * number + 3 * at) % 900 + 300 for at in range(5 + 13 * number)),
            params=SamplingParams(**{**defaults, "seed": number // 2, **shape}),
        )
        for number, shape in enumerate(shapes)
    ]


def outputs(overlap: str, shapes: list[dict], blocks: int = 200) -> tuple[list[list[int]], int]:
    """Of an instance, the prompts coming one after the other; and how often its memory did not suffice."""
    config = EngineConfig(kv_blocks=blocks, device="cpu", overlap=overlap, admission="aggressive")
    alone = Alone(config, Budget(24, 8))
    begun = contexts(shapes)
    for number, context in enumerate(begun):
        alone.start(f"s{number}", context)
        alone.round()
    while alone.round():
        pass
    assert alone.idle
    return [alone.outputs(f"s{number}") for number in range(len(begun))], alone.preemptions


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each step how many of its items take a token that is still being drawn."""
    counts: list[int] = []
    launch = Runner.launch

    def counted(self, items, after, meanwhile):
        counts.append(sum(item.follows is not None for item in items))
        return launch(self, items, after, meanwhile)

    monkeypatch.setattr(Runner, "launch", counted)
    return counts


@pytest.mark.parametrize("shapes", [AHEAD, LOOKING_BACK], ids=["ahead", "looking back"])
def test_outputs_are_those_of_one_step_at_a_time(followed, shapes):
    plain, _ = outputs("off", shapes)
    assert not any(followed)
    followed.clear()
    ahead, _ = outputs("on", shapes)
    assert ahead == plain
    assert sum(followed) > 100
    assert [len(output) for output in plain[:2]] == [60, 60] and len(plain[6]) == 1
    assert 9 < len(plain[4]) < 60, "an end that nobody foresaw"
    assert plain[2] != plain[3]


def test_whoever_gives_memory_back_goes_on_the_same(followed):
    plain, _ = outputs("off", AHEAD)
    ahead, preemptions = outputs("on", AHEAD, blocks=24)
    assert ahead == plain and preemptions > 0 and sum(followed) > 100


def test_a_step_with_penalties_is_waited_for_and_others_are_not(followed):
    outputs("on", [{"presence_penalty": 0.5}])
    assert not any(followed)
    outputs("on", [{"temperature": 0.0}])
    assert sum(followed) == 59


def test_a_cancelled_sequence_is_freed_once_its_last_step_is_over():
    alone = Alone(EngineConfig(kv_blocks=20, device="cpu", overlap="on"), Budget(24, 8))
    [context] = contexts([{}])
    alone.start("s", replace(context, cache_ttl_s=0.0))
    for _ in range(6):
        alone.round()
    made = len(alone.outputs("s"))
    assert made > 1 and not alone.idle
    alone.post("s", FromRouter(ROUTER, Revoke("s", Epoch(1, 9))))
    alone.round()
    assert not alone.idle, "the step in flight may still write"
    alone.round()
    assert alone.idle and len(alone.outputs("s")) == made + 1
