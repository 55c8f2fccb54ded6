"""A token depends on its logits and its own draw alone."""

import random

import pytest
import torch

from penstock.engine.draw import draw_key
from penstock.engine.sampler import sample, score
from penstock.engine.step import SampleSpec


def specs(count: int, temperature: float) -> list[SampleSpec]:
    return [SampleSpec(temperature, seed=5 + i, choice=i % 3, position=7 * i) for i in range(count)]


def noise(key: int, vocabulary: int) -> torch.Tensor:
    return score(torch.zeros(1, vocabulary), [1.0], [key])[0]


def test_draws_are_fixed_for_all_time() -> None:
    assert draw_key(0, 0, 0) == -184612235156726761
    assert draw_key(2**64 - 1, 3, 100) == draw_key(-1, 3, 100)
    # SplitMix64 seeded with 1234567 gives 6457827717110365317, 3203168211198807973, 9817491932198370423.
    words = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    uniform = torch.tensor([word / 2**64 for word in words], dtype=torch.float64)
    assert torch.allclose(noise(1234567, 3), -torch.log(-torch.log(uniform)), rtol=0, atol=1e-12)


def test_keys_differ_in_every_argument() -> None:
    keys = {
        draw_key(seed, choice, position)
        for seed in range(10)
        for choice in range(4)
        for position in range(250)
    }
    assert len(keys) == 10_000


@pytest.mark.parametrize("along", ["tokens", "positions"])
def test_noise_is_gumbel_along_tokens_and_along_positions(along: str) -> None:
    keys = [draw_key(3, 0, position) for position in range(100)]
    table = score(torch.zeros(100, 100), [1.0] * 100, keys)
    uniform = torch.exp(-torch.exp(-table))  # the Gumbel distribution's own cumulative
    line = uniform if along == "tokens" else uniform.T
    counts = torch.histc(uniform, bins=20, min=0, max=1)
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    centred = line - 0.5
    lagged = (centred[:, 1:] * centred[:, :-1]).mean() / centred.square().mean()
    assert abs(lagged) < 0.04  # four standard deviations of 9,900 independent pairs


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0]])
    assert sample(logits, specs(2, 0.0)).tolist() == [1, 0]


def test_a_row_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 4096) * 3
    mixed = [SampleSpec((0.0, 0.7, 1.3)[i % 3], i, 0, i) for i in range(40)]
    together = sample(logits, mixed).tolist()
    assert together == [sample(logits[i : i + 1], mixed[i : i + 1]).tolist()[0] for i in range(40)]
    order = random.Random(1).sample(range(40), 40)
    assert sample(logits[order], [mixed[i] for i in order]).tolist() == [together[i] for i in order]


def test_noise_of_a_token_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    assert torch.equal(noise(7, 100), noise(7, 5000)[:100])


def test_low_temperatures_approach_greedy_and_never_overflow() -> None:
    torch.manual_seed(1)
    logits = torch.randn(20, 500) * 50
    cold = [SampleSpec(1e-6, i, 0, 0) for i in range(20)]
    assert sample(logits, cold).tolist() == logits.argmax(-1).tolist()
    assert torch.isfinite(score(logits, [1e6] * 20, list(range(20)))).all()


def test_a_masked_token_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(500, 3)
    assert 1 not in sample(logits, [SampleSpec(2.0, 4, 0, position) for position in range(500)]).tolist()


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    expected = torch.softmax(logits / 0.8, -1) * 20_000
    drawn = sample(
        logits.expand(20_000, 4), [SampleSpec(0.8, 9, 0, position) for position in range(20_000)]
    ).tolist()
    found = torch.bincount(torch.tensor(drawn), minlength=4)
    assert ((found - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
