"""Laws of the comparison: only what rounding explains is a tie, and a wrong token spoils all that follows."""

import pytest
import torch

from penstock.benchmarks.compare import TIE, compare, compare_shaped, wrong_logprobs
from penstock.benchmarks.plain import Asked, left
from penstock.benchmarks.trials import draw_trials
from penstock.engine.draw import draw_key
from penstock.engine.logprobs import LogprobsOf
from penstock.engine.sampler import sample, score
from penstock.engine.sequence import Sequence
from penstock.engine.step import SampleSpec
from penstock.handover.values import Context, Epoch, Logprobs, SamplingParams

SEED = 5
ROWS = 60
VOCABULARY = 50


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def choices(logits: torch.Tensor, temperature: float) -> list[int]:
    """What the shipped sampler takes."""
    return sample(logits, [SampleSpec(temperature, SEED, 0, position) for position in range(ROWS)]).tolist()


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


def generate(asked: Asked, logits: torch.Tensor) -> list[int]:
    """What an engine makes of these logits, row by row."""
    context = Context(asked.prompt, (), asked.params)
    sequence = Sequence.begin("s", Epoch(1, 1), context, 10_000, asked.ends)
    for row in logits:
        token = sample(row[None].clone(), [sequence.sample_spec()]).tolist()[0]
        if sequence.append(token).end is not None:
            break
    return sequence.tokens[sequence.prompt :]


def test_the_engine_and_the_plain_way_agree_on_every_parameter_that_is_drawn():
    trials = draw_trials(60, 0, 3, vocabulary=VOCABULARY, context_tokens=4096, sampled_share=0.7)
    shaped = [trial for trial in trials if trial.shape != SamplingParams()]
    used = {
        name
        for trial in shaped
        for name in SamplingParams.__slots__
        if getattr(trial.shape, name) != getattr(SamplingParams(), name)
    }
    assert used >= {
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "min_tokens",
    }
    for number, trial in enumerate(shaped):
        asked = Asked(trial.params(choice=number % 3), trial.prompt)
        logits = random_logits(number)
        output = generate(asked, logits)
        found = compare_shaped(output, logits[: len(output)], asked)
        assert (found.ties, found.mismatched) == (0, 0), trial
        begun = len(output) // 2
        assert compare_shaped(output, logits[begun : len(output)], asked, begun).mismatched == 0


def test_a_token_that_a_filter_leaves_out_is_wrong_and_at_its_edge_a_tie():
    logits = random_logits(8)[:1].double()
    first, second, third = logits[0].topk(3).indices.tolist()
    asked = Asked(SamplingParams(temperature=50.0, top_k=2, seed=SEED, ignore_eos=True))
    assert compare_shaped([third], logits, asked).mismatched == 1
    logits[0, third] = logits[0, second] - TIE / 2
    outcomes = [compare_shaped([token], logits, asked) for token in (first, second, third)]
    assert sum(outcome.mismatched for outcome in outcomes) <= 2
    strict, loose, tight = (
        left(logits, asked.params, slack)[0].nonzero().flatten().tolist() for slack in (0, TIE, -TIE)
    )
    assert (set(strict), set(loose), tight) == ({first, second}, {first, second, third}, [first])


def test_what_follows_a_token_that_ends_the_output_is_wrong():
    logits = random_logits(9)
    tokens = choices(logits, 0.0)
    asked = Asked(SamplingParams(seed=SEED, ignore_eos=True, stop_token_ids=(tokens[10],)))
    assert compare_shaped(tokens, logits, asked).mismatched == ROWS - 1 - tokens.index(tokens[10])


def test_log_probabilities_off_by_more_than_rounding_missing_or_of_others_are_wrong():
    logits = random_logits(5)
    tokens = choices(logits, 0.0)
    told = LogprobsOf(logits, torch.tensor(tokens), [2] * ROWS).result()
    assert wrong_logprobs(told, tokens, logits, 2) == 0
    assert wrong_logprobs(told[:-3], tokens, logits, 2) == 3
    assert wrong_logprobs(told, tokens, logits, 3) == ROWS
    own, top = told[7].own, told[7].top
    for altered in (
        Logprobs(own + 2 * TIE, top),
        Logprobs(own, top[::-1]),
        Logprobs(own, ((1, top[0][1]), top[1])),
    ):
        assert wrong_logprobs([*told[:7], altered, *told[8:]], tokens, logits, 2) == 1
