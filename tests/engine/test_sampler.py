"""A token depends on its logits and its own draw alone."""

import math
import random

import torch

from penstock.engine.draw import uniform
from penstock.engine.sampler import sample, sample_from_logits
from penstock.engine.step import SampleSpec


def specs(count: int, temperature: float) -> list[SampleSpec]:
    return [SampleSpec(temperature, seed=5 + i, choice=i % 3, position=7 * i) for i in range(count)]


def test_draws_are_fixed_for_all_time() -> None:
    assert uniform(0, 0, 0) == 0.7697733634361742
    assert uniform(2**64 - 1, 3, 100) == uniform(-1, 3, 100)


def test_draws_are_uniform_and_differ_in_every_argument() -> None:
    draws = [
        uniform(seed, choice, position)
        for seed in range(10)
        for choice in range(4)
        for position in range(250)
    ]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    counts = torch.histc(torch.tensor(draws), bins=20, min=0, max=1)
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    assert sample(logits, specs(2, 0.0)) == [1, 0]
    assert sample_from_logits(logits[0], 0.0, 0.9) == 1


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 4096) * 3
    mixed = [SampleSpec((0.0, 0.7, 1.3)[i % 3], i, 0, i) for i in range(40)]
    together = sample(logits, mixed)
    assert together == [sample(logits[i : i + 1], mixed[i : i + 1])[0] for i in range(40)]
    order = random.Random(1).sample(range(40), 40)
    assert sample(logits[order], [mixed[i] for i in order]) == [together[i] for i in order]
    assert together == [
        sample_from_logits(row, spec.temperature, uniform(spec.seed, spec.choice, spec.position))
        for row, spec in zip(logits, mixed, strict=True)
    ]


def test_the_draw_inverts_the_distribution_in_token_order() -> None:
    logits = torch.log(torch.tensor([0.125, 0.5, 0.0, 0.375]))
    expected = {0.0: 0, 0.1249: 0, 0.1251: 1, 0.6249: 1, 0.6251: 3, math.nextafter(1, 0): 3}
    assert {u: sample_from_logits(logits, 1.0, u) for u in expected} == expected


def test_low_temperatures_approach_greedy_and_never_overflow() -> None:
    torch.manual_seed(1)
    logits = torch.randn(20, 500) * 50
    cold = [SampleSpec(1e-6, i, 0, 0) for i in range(20)]
    assert sample(logits, cold) == logits.argmax(-1).tolist()


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    expected = torch.softmax(logits / 0.8, -1)
    drawn = [sample_from_logits(logits, 0.8, uniform(9, 0, position)) for position in range(4000)]
    found = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    assert (found - expected).abs().max() < 0.03
