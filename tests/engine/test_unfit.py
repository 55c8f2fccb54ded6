"""Laws of requests that an instance can never serve: they end with a reason, and nobody else notices."""

import pytest

from penstock.benchmarks.alone import Alone, Router
from penstock.engine.config import EngineConfig
from penstock.handover.values import Context, SamplingParams
from penstock.policy.batching import Budget

BLOCKS = 20
CONTEXT = BLOCKS * 16
PROMPT = tuple(range(300, 310))


def params(**more):
    return SamplingParams(max_tokens=9, ignore_eos=True, **more)


UNFIT = {
    "empty": Context((), params=params()),
    "vocabulary": Context((99_999,), params=params()),
    "below the vocabulary": Context(PROMPT, (99_999,), params()),
    "token 99998": Context(PROMPT, params=params(min_tokens=3, stop_token_ids=(99_998,))),
    "token 99997": Context(PROMPT, params=params(logit_bias=((99_997, 1.0),))),
    f"context of {CONTEXT}": Context((300,) * CONTEXT, params=params()),
    "room for output": Context((300,) * (CONTEXT - 1), (300,), params()),
    "no tokenizer": Context(PROMPT, params=params(grammar="{}")),
}


@pytest.fixture
def told(monkeypatch):
    """Why sessions were refused."""
    reasons: dict[str, str] = {}
    send = Router.send

    def heard(self, to_routers, to_peers):
        for _, frame in to_routers:
            reasons.update({news.session: news.refused for news in frame.news if news.refused})
        send(self, to_routers, to_peers)

    monkeypatch.setattr(Router, "send", heard)
    return reasons


def finish(alone):
    alone.round()
    while alone.round():
        pass


def test_what_can_never_be_served_is_refused_and_the_others_go_on(told):
    alone = Alone(EngineConfig(kv_blocks=BLOCKS, device="cpu"), Budget(24, 8))
    alone.start("good", Context(PROMPT, params=params()))
    for reason, context in UNFIT.items():
        alone.round()
        alone.start(reason, context)
        alone._router.outputs[reason] = list(context.emitted)
    finish(alone)
    assert len(alone.outputs("good")) == 9
    assert set(told) == set(UNFIT)
    for reason, said in told.items():
        assert reason in said


def test_what_just_fits_is_served(told):
    alone = Alone(EngineConfig(kv_blocks=BLOCKS, device="cpu"), Budget(24, 8))
    alone.start("last", Context((4095,) * (CONTEXT - 1), params=params()))
    finish(alone)
    assert len(alone.outputs("last")) == 1 and not told
