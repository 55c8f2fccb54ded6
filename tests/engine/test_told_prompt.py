"""A prompt's log-probabilities are told of every token of it, whatever is cached."""

from dataclasses import replace

import pytest

from penstock.benchmarks.alone import Alone, Router
from penstock.engine.config import EngineConfig
from penstock.handover.values import Context, SamplingParams
from penstock.policy.batching import Budget

PROMPT = tuple(range(300, 400))
ASKED = Context(PROMPT, params=SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=1))


@pytest.fixture
def told(monkeypatch):
    """Of each session: what came of its prompt."""
    heard: dict[str, tuple] = {}
    send = Router.send

    def hear(self, to_routers, to_peers):
        for _, frame in to_routers:
            for news in frame.news:
                for record in news.records:
                    heard.setdefault(news.session, record.prompt)
        send(self, to_routers, to_peers)

    monkeypatch.setattr(Router, "send", hear)
    return heard


def test_a_prompt_that_is_cached_is_told_whole_again(told):
    alone = Alone(EngineConfig(kv_blocks=40, device="cpu"), Budget(64, 8))
    hits = []
    for session in ("first", "second", "untold"):
        asks = session != "untold"
        alone.start(session, ASKED if asks else replace(ASKED, params=SamplingParams(max_tokens=3)))
        while alone.round() or not alone.outputs(session):
            pass
        hits.append(alone._engine.load.hit_tokens)
    assert len(told["first"]) == len(told["second"]) == len(PROMPT) - 1
    for first, second in zip(told["first"], told["second"], strict=True):
        assert first.own == pytest.approx(second.own, abs=1e-4)
    assert hits[:2] == [0, 0] and hits[2] > 0, "it was cached, and is read where nothing is to be told"
