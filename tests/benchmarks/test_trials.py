"""Laws of what is drawn: repeatable, within the bounds that are promised, and different from trial to trial."""

from itertools import combinations
from os.path import commonprefix

import pytest

from penstock.benchmarks.trials import LONGEST_PROMPT, MOVED_WITHIN, OUTPUT_TOKENS, draw_trials
from penstock.handover.values import SamplingParams


def drawn(seed=1, count=200, moves=3, vocabulary=100, context_tokens=4096, sampled_share=0.5):
    return draw_trials(
        count,
        moves,
        seed,
        vocabulary=vocabulary,
        context_tokens=context_tokens,
        sampled_share=sampled_share,
    )


def test_the_same_seed_draws_the_same_trials_and_another_draws_others():
    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert len({trial.request_id for trial in drawn()}) == 200


def test_trials_keep_within_their_bounds():
    fewest, most = OUTPUT_TOKENS
    for trial in drawn():
        assert 1 <= len(trial.prompt) <= LONGEST_PROMPT
        assert fewest <= trial.max_tokens <= most
        assert all(0 <= token < 100 for token in trial.prompt)
        assert trial.cancel_after is None or 1 <= trial.cancel_after < trial.max_tokens
        early = max(1, MOVED_WITHIN * (trial.cancel_after or trial.max_tokens))
        assert len(trial.moves) <= 3 and list(trial.moves) == sorted(trial.moves)
        assert all(0 <= index < early for index in trial.moves)


def test_a_short_context_shortens_prompts_and_outputs():
    for trial in drawn(context_tokens=64):
        assert len(trial.prompt) + trial.max_tokens <= 64


def test_every_kind_of_trial_is_drawn():
    trials = drawn()
    assert {len(trial.moves) for trial in trials} == {0, 1, 2, 3}
    assert {trial.temperature > 0 for trial in trials} == {True, False}
    assert {trial.cancel_after is None for trial in trials} == {True, False}
    assert {trial.choices for trial in trials} == {1, 2, 3}
    assert {trial.shape == SamplingParams() for trial in trials} == {True, False}


def test_few_trials_hold_every_kind_but_perhaps_a_cancelled_one():
    for seed in range(20):
        few = draw_trials(4, 3, seed, vocabulary=100, context_tokens=1024, sampled_share=0.1, text=True)
        kinds = [trial.shape.logprobs is not None for trial in few]
        assert any(kinds) and any(trial.shape.prompt_logprobs is not None for trial in few)
        assert any(trial.temperature for trial in few) and any(trial.choices > 1 for trial in few)
        assert any(trial.held for trial in few) and len({trial.tenant for trial in few}) == 2


def test_prompts_begin_alike_for_unequal_lengths_and_some_come_again():
    trials = drawn()
    pairs = [commonprefix([a.prompt, b.prompt]) for a, b in combinations(trials, 2)]
    assert len({len(pair) for pair in pairs if len(pair) >= 16}) > 20
    same = [trial for trial in trials if [other.prompt for other in trials].count(trial.prompt) > 1]
    assert {trial.tenant for trial in same} == {"", "another"}


def test_a_share_is_held_to_constraints_where_there_is_text():
    held = [
        trial
        for trial in draw_trials(200, 2, 1, vocabulary=100, context_tokens=4096, text=True)
        if trial.held
    ]
    assert {trial.held.kind for trial in held} == {"regex", "json_schema", "choices", "grammar"}
    assert not any(trial.shape.min_tokens or trial.params().ignore_eos for trial in held)
    assert not any(trial.held for trial in drawn())


def test_choices_share_the_moves_of_a_trial():
    for trial in drawn():
        shared = [index for choice in range(trial.choices) for index in trial.moves_of(choice)]
        assert sorted(shared) == sorted(trial.moves)


def test_a_context_too_short_for_any_output_is_refused():
    with pytest.raises(ValueError, match="too short"):
        drawn(context_tokens=OUTPUT_TOKENS[0])
