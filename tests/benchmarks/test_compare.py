"""Laws of the comparison: only what rounding explains is a tie, and a wrong token spoils all that follows."""

import pytest
import torch

from penstock.benchmarks.compare import TIE, compare
from penstock.engine.draw import draw_key
from penstock.engine.sampler import sample, score
from penstock.engine.step import SampleSpec

SEED = 5
ROWS = 60
VOCABULARY = 50


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def choices(logits: torch.Tensor, temperature: float) -> list[int]:
    """What the shipped sampler takes."""
    return sample(logits, [SampleSpec(temperature, SEED, 0, position) for position in range(ROWS)])


@pytest.mark.parametrize("temperature", [0.0, 0.75, 1.5])
def test_the_references_own_choices_are_neither_tied_nor_wrong(temperature):
    logits = random_logits(1)
    found = compare(choices(logits, temperature), logits, temperature, SEED)
    assert (found.tokens, found.ties, found.mismatched) == (ROWS, 0, 0)


@pytest.mark.parametrize("temperature", [0.0, 0.75])
@pytest.mark.parametrize("at", [0, 17, ROWS - 1])
def test_a_wrong_token_spoils_all_that_follows_it(temperature, at):
    logits = random_logits(2)
    tokens = choices(logits, temperature)
    tokens[at] = int(logits[at].argmin())
    found = compare(tokens, logits, temperature, SEED)
    assert (found.ties, found.mismatched) == (0, ROWS - at)


def test_the_runner_up_within_rounding_is_a_tie_and_beyond_it_is_wrong():
    logits = random_logits(3)
    tokens = choices(logits, 0.0)
    for distance, outcome in ((0.9 * TIE, (1, 0)), (1.1 * TIE, (0, ROWS - 9))):
        close = logits.double()
        tokens[9] = int(close[9].topk(2).indices[1])
        close[9, tokens[9]] = close[9].max() - distance
        found = compare(tokens, close, 0.0, SEED)
        assert (found.ties, found.mismatched) == outcome


def test_a_third_token_is_wrong_however_close_the_first_two_are():
    logits = random_logits(4)
    first, second, third = logits[0].topk(3).indices.tolist()
    logits[0, second] = logits[0, first]
    found = compare([third, *choices(logits, 0.0)[1:]], logits, 0.0, SEED)
    assert (found.ties, found.mismatched) == (0, ROWS)


def test_equal_logits_go_to_the_lowest_id_and_the_other_is_a_tie():
    logits = torch.zeros(1, VOCABULARY)
    assert compare([0], logits, 0.0, SEED).ties == 0
    assert compare([1], logits, 0.0, SEED).ties == 1


def test_a_draw_between_two_scores_within_rounding_may_take_either():
    temperature = 0.8
    noise = score(torch.zeros(1, 2), [temperature], [draw_key(SEED, 0, 0)])
    for distance, outcome in ((0.9 * TIE, (1, 0)), (1.1 * TIE, (0, 1))):
        logits = torch.tensor([[1.0, 1.0 + distance]], dtype=torch.float64) - noise
        assert compare([1], logits, temperature, SEED).ties == 0
        found = compare([0], logits, temperature, SEED)
        assert (found.ties, found.mismatched) == outcome


def test_draws_are_those_of_the_tokens_places_in_the_output():
    logits = random_logits(6)
    tokens = choices(logits, 0.75)
    assert compare(tokens[20:], logits[20:], 0.75, SEED, first=20).mismatched == 0
    assert compare(tokens[20:], logits[20:], 0.75, SEED, first=0).mismatched > 0
