"""A paced model gives the same tokens, and its steps take what the cost model says."""

from penstock.benchmarks.paced import _Paced, shape_of
from penstock.engine.config import EngineConfig
from penstock.engine.runner import Runner
from penstock.engine.step import SampleSpec, StepItem
from penstock.policy.cost import Law, Piece, StepCost, StepShape


def of(base_s: float) -> StepCost:
    piece = Piece(base_s=base_s, per_token_s=1e-9, per_chunk_work_s=1e-9, per_context_token_s=1e-9)
    law = Law(split_tokens=8, below=piece, above=piece)
    return StepCost(prefill=law, decode=law)


GREEDY = SampleSpec(temperature=0.0, seed=0, choice=0, position=0)


def items() -> list[StepItem]:
    return [StepItem(list(range(20)), 0, [0, 1], GREEDY), StepItem([5], 0, [2], GREEDY)]


def test_a_step_has_the_shape_of_its_chunks_and_decodes():
    decode, chunk = StepItem([5], 30, [0, 1]), StepItem([5, 6, 7], 16, [2, 3])
    assert shape_of([decode, chunk]) == StepShape.of([(3, 16)], [31])
    assert shape_of(items()) == StepShape.of([(20, 0), (1, 0)])


def test_a_paced_step_is_the_step_and_waits_for_its_time():
    slept: list[float] = []
    runner = Runner(EngineConfig(kv_blocks=8, device="cpu"))
    paced = _Paced(runner, of(50.0), slept.append)
    assert paced.step(items()) == runner.step(items())
    (left_s,) = slept
    assert 0 < left_s <= of(50.0).predict(shape_of(items()))
    assert paced.layout is runner.layout and paced.cache is runner.cache and paced.alive


def test_a_step_that_took_longer_waits_no_more():
    slept: list[float] = []
    paced = _Paced(Runner(EngineConfig(kv_blocks=8, device="cpu")), of(1e-9), slept.append)
    paced.step(items())
    assert slept == []
