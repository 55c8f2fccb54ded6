"""Parameters change logits as their definitions say, each row by itself; `transformers` is asked where it has them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from penstock.engine import shaping
from penstock.engine.draw import draw_key
from penstock.engine.sampler import sample, score
from penstock.engine.shaping import shape_
from penstock.engine.step import SampleSpec, Shaping
from penstock.engine.tally import Tally
from penstock.handover.values import SamplingParams

VOCABULARY = 60


def logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def spec(params: SamplingParams, prompt=(), emitted=(), barred=()) -> SampleSpec:
    shaping = Shaping(params, Tally(prompt, emitted), barred)
    return SampleSpec(params.temperature, params.seed, params.choice, len(emitted), shaping)


def shaped(row: torch.Tensor, *arguments, **more) -> torch.Tensor:
    changed = row.clone()
    shape_(changed, [spec(*arguments, **more)])
    return changed


def test_neutral_parameters_change_nothing():
    row = logits(1)
    assert torch.equal(shaped(row, SamplingParams(temperature=0.7), [1, 2], [3, 3]), row)


def test_repetition_is_that_of_transformers_over_prompt_and_output():
    row = logits(2)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[1, 2, 5, 5, 9]]), row.clone())
    ours = shaped(row, SamplingParams(repetition_penalty=1.3), [1, 2], [5, 5, 9])
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_presence_and_frequency_count_the_output_alone():
    row = logits(3)
    ours = shaped(row, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), [1, 2], [5, 5, 9])
    expected = row.clone()
    expected[0, 5] -= 0.5 + 2 * 0.25
    expected[0, 9] -= 0.5 + 0.25
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_bias_is_added_and_a_barred_token_is_gone_whatever_its_bias():
    row = logits(4)
    ours = shaped(row, SamplingParams(logit_bias=((3, 2.5), (7, 100.0))), barred=(7,))
    expected = row.clone()
    expected[0, 3] += 2.5
    expected[0, 7] = -math.inf
    assert torch.equal(ours, expected)


def test_a_bias_comes_before_repetition_and_that_before_presence():
    row = torch.full((1, VOCABULARY), 1.0)
    params = SamplingParams(logit_bias=((5, 3.0),), repetition_penalty=2.0, presence_penalty=0.5)
    assert shaped(row, params, [], [5])[0, 5] == (1.0 + 3.0) / 2.0 - 0.5


FILTERS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 0.8, 1.7]),
        "top_p": st.sampled_from([1.0, 0.95, 0.6, 0.2, 1e-6]),
        "top_k": st.sampled_from([0, 1, 2, 7, 40, 1000]),
        "min_p": st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    }
)


def left_by_transformers(row: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens their processors leave, in our order."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    row = TemperatureLogitsWarper(params.temperature)(ids, row.double())
    if params.min_p:
        row = MinPLogitsWarper(params.min_p)(ids, row)
    if params.top_k:
        row = TopKLogitsWarper(params.top_k)(ids, row)
    if params.top_p < 1:
        row = TopPLogitsWarper(params.top_p)(ids, row)
    return row > -math.inf


@settings(deadline=None, max_examples=60)
@given(filters=FILTERS, seed=st.integers(0, 1000))
def test_the_draw_is_the_best_score_of_the_tokens_that_transformers_leaves(filters, seed):
    row = logits(seed)
    params = SamplingParams(seed=seed, **filters)
    left = left_by_transformers(row, params)
    for position in range(20):
        emitted = [0] * position
        scores = score(row, [params.temperature], [draw_key(seed, 0, position)])
        expected = scores.masked_fill(~left, -math.inf).argmax()
        assert sample(row.clone(), [spec(params, (), emitted)]).tolist() == [int(expected)]


@pytest.mark.parametrize("seed", range(8))
def test_the_way_of_gpus_filters_as_that_of_cpus_does(seed, monkeypatch):
    """Also among equal logits, and with tokens that may not come at all."""
    rows = (logits(seed, 40) / (1 + seed)).round(decimals=seed % 2)
    rows[:, ::7] = -math.inf
    draw = torch.Generator().manual_seed(seed)
    top_p, min_p = torch.rand(2, 40, generator=draw).tolist()
    specs = [
        spec(SamplingParams(temperature=0.5 + row / 20, seed=row, top_p=p, min_p=m / 5, top_k=row % 9))
        for row, (p, m) in enumerate(zip(top_p, min_p, strict=True))
    ]
    by_pivots = sample(rows.clone(), specs).tolist()
    monkeypatch.setattr(shaping, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(shaping, "best_by_pivots", None)
    assert sample(rows.clone(), specs).tolist() == by_pivots


def test_frequencies_follow_the_nucleus():
    row = torch.tensor([0.3, -1.0, 2.0, 0.0, -4.0])
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=9)
    kept = torch.softmax(row / 0.8, -1)
    kept[[1, 4]] = 0
    expected = kept / kept.sum() * 10_000
    shaping = Shaping(params)
    drawn = sample(
        row.repeat(10_000, 1), [SampleSpec(0.8, 9, 0, position, shaping) for position in range(10_000)]
    ).tolist()
    found = torch.bincount(torch.tensor(drawn), minlength=5)
    assert found[[1, 4]].tolist() == [0, 0]
    used = expected > 0
    assert ((found - expected)[used] ** 2 / expected[used]).sum() < 13.8  # 2 degrees of freedom, p = 0.001


def test_a_greedy_choice_is_made_of_the_penalized_logits():
    row = torch.zeros(1, VOCABULARY)
    row[0, 5], row[0, 6] = 2.0, 1.0
    params = SamplingParams(presence_penalty=1.5, top_k=1)
    assert sample(row.clone(), [spec(params, (), ())]).tolist() == [5]
    assert sample(row.clone(), [spec(params, (), [5])]).tolist() == [6]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(data):
    rows = data.draw(st.integers(2, 9))
    specs, table = [], logits(data.draw(st.integers(0, 99)), rows)
    for i in range(rows):
        filters = data.draw(FILTERS) | {"temperature": data.draw(st.sampled_from([0.0, 0.8]))}
        params = SamplingParams(
            seed=i,
            presence_penalty=data.draw(st.sampled_from([0.0, 1.0])),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.4])),
            logit_bias=data.draw(st.sampled_from([(), ((3, 5.0),)])),
            **filters,
        )
        plain = SampleSpec(params.temperature, i, 0, i)
        specs.append(
            data.draw(
                st.sampled_from(
                    [plain, spec(params, [1, 2], [i] * i, data.draw(st.sampled_from([(), (4,)])))]
                )
            )
        )
    together = sample(table.clone(), specs).tolist()
    assert together == [sample(table[i : i + 1].clone(), specs[i : i + 1]).tolist()[0] for i in range(rows)]


def test_a_nucleus_of_equal_tokens_has_them_all():
    row = torch.zeros(200, VOCABULARY)
    specs = [
        SampleSpec(1.0, 1, 0, i, Shaping(SamplingParams(temperature=1.0, top_p=0.1))) for i in range(200)
    ]
    assert len(set(sample(row, specs).tolist())) > 40


@pytest.mark.parametrize("top_k", [VOCABULARY, 10 * VOCABULARY])
def test_more_than_all_tokens_are_all(top_k):
    row = logits(8)
    params = SamplingParams(temperature=1.0, top_k=top_k)
    assert sample(row.clone(), [spec(params)]).tolist() == sample(row, [SampleSpec(1.0, 0, 0, 0)]).tolist()
