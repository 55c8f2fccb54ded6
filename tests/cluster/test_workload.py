"""Workloads: what a transformation keeps, and that shared blocks have the same tokens in every request."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster.workload import (
    Request,
    Workload,
    cut,
    first,
    labelled,
    scale_lengths,
    scale_rate,
    splice,
    token_ids,
)


@st.composite
def requests(draw) -> Request:
    block = draw(st.integers(1, 40))
    prompt = draw(st.integers(1, 400))
    ids = draw(st.lists(st.integers(0, 5), max_size=-(-prompt // block)))
    return Request(
        arrival_s=draw(st.floats(0, 1000)),
        prompt_tokens=prompt,
        output_tokens=draw(st.integers(1, 400)),
        hash_ids=tuple(ids),
        hash_block_tokens=block,
    )


WORKLOADS = st.builds(Workload.of, st.just("w"), st.lists(requests(), max_size=12))
FACTORS = st.floats(0.01, 20)


def plain(arrival_s: float, **changes) -> Request:
    return Request(arrival_s=arrival_s, prompt_tokens=10, output_tokens=5, **changes)


@settings(deadline=None)
@given(WORKLOADS, FACTORS)
def test_a_scaled_rate_changes_times_alone(workload, factor):
    scaled = scale_rate(workload, factor)
    assert len(scaled) == len(workload)
    for before, after in zip(workload.requests, scaled.requests, strict=True):
        assert after.arrival_s == pytest.approx(before.arrival_s / factor)
        assert after.prompt_tokens == before.prompt_tokens and after.hash_ids == before.hash_ids


def test_a_session_keeps_the_times_between_its_turns():
    turns = [plain(10 + 5 * turn, session="a", turn=turn) for turn in range(3)]
    scaled = scale_rate(Workload.of("w", [plain(0), *turns]), 2)
    assert [request.arrival_s for request in scaled.requests] == [0, 5, 10, 15]


@settings(deadline=None)
@given(WORKLOADS, FACTORS, FACTORS)
def test_scaled_lengths_keep_what_is_shared(workload, prompt, output):
    scaled = scale_lengths(workload, prompt, output)
    for before, after in zip(workload.requests, scaled.requests, strict=True):
        assert after.hash_ids == before.hash_ids
        assert after.output_tokens == max(1, round(before.output_tokens * output))
        if before.hash_ids:
            full = before.hash_block_tokens
            assert after.hash_block_tokens == max(1, round(full * prompt))
            whole = before.shared_tokens // full
            assert after.shared_tokens // after.hash_block_tokens >= whole
            own = before.prompt_tokens - before.shared_tokens
            assert after.prompt_tokens - after.shared_tokens == round(own * prompt)
        else:
            assert after.prompt_tokens == max(1, round(before.prompt_tokens * prompt))


@settings(deadline=None)
@given(WORKLOADS)
def test_labels_change_nothing_else(workload):
    labels = {"application": "chat", "tenant": "a", "priority": "high"}
    expected = [replace(request, **labels) for request in workload.requests]
    assert list(labelled(workload, **labels).requests) == expected
    assert labelled(labelled(workload, **labels)) == workload


@settings(deadline=None)
@given(WORKLOADS, st.floats(0, 500), st.floats(1, 600))
def test_a_cut_holds_the_arrivals_between_two_times(workload, start_s, length_s):
    part = cut(workload, start_s, start_s + length_s)
    inside = [r for r in workload.requests if start_s <= r.arrival_s < start_s + length_s]
    assert [r.arrival_s for r in part.requests] == [r.arrival_s - start_s for r in inside]
    assert cut(workload) == workload
    assert first(workload, 3).requests == workload.requests[:3]


@settings(deadline=None)
@given(WORKLOADS, WORKLOADS, st.floats(0, 1000))
def test_a_hard_splice_is_one_workload_and_then_the_other(before, after, at_s):
    both = splice(before, after, at_s)
    old = [r for r in both.requests if r.arrival_s < at_s]
    new = [r for r in both.requests if r.arrival_s >= at_s]
    assert old == [r for r in before.requests if r.arrival_s < at_s]
    assert [r.prompt_tokens for r in new] == [r.prompt_tokens for r in after.requests]
    ids = [{block for r in side for block in r.hash_ids} for side in (old, new)]
    assert not ids[0] & ids[1], "what the two share is only within each"


def test_a_soft_splice_turns_one_into_the_other():
    old, new = (
        Workload.of(name, [plain(t / 10, application=name) for t in range(6000)]) for name in ("old", "new")
    )
    both = splice(old, new, at_s=100, over_s=300, seed=3)
    assert both == splice(old, new, at_s=100, over_s=300, seed=3) != splice(old, new, 100, 300, seed=4)

    def share(start: float, end: float) -> float:
        part = [r.application == "new" for r in both.requests if start <= r.arrival_s < end]
        return sum(part) / len(part)

    assert share(0, 100) == 0 and share(400, 600) == 1
    assert 0.1 < share(150, 200) < 0.4 < share(225, 275) < 0.6 < share(300, 350) < 0.9


def test_sessions_of_two_spliced_workloads_stay_whole_and_apart():
    turns = [plain(4 * turn, session="a", turn=turn) for turn in range(3)]
    both = splice(Workload.of("x", turns), Workload.of("y", turns), at_s=5)
    found = {}
    for request in both.requests:
        found.setdefault(request.session, []).append(request.turn)
    assert list(found.values()) == [[0, 1, 2], [0, 1, 2]]


@settings(deadline=None)
@given(requests(), requests(), st.integers(1, 5000), st.integers(0, 9))
def test_equal_blocks_have_equal_tokens_and_the_rest_is_ones_own(one, other, vocabulary, seed):
    tokens = token_ids(one, vocabulary, seed, "one")
    assert tokens == token_ids(one, vocabulary, seed, "one")
    assert len(tokens) == one.prompt_tokens and all(0 <= token < vocabulary for token in tokens)
    if one.hash_block_tokens == other.hash_block_tokens:
        common = 0
        for mine, its in zip(one.hash_ids, other.hash_ids, strict=False):
            if mine != its:
                break
            common += one.hash_block_tokens
        common = min(common, one.shared_tokens, other.shared_tokens)
        assert tokens[:common] == token_ids(other, vocabulary, seed, "other")[:common]


def test_requests_that_share_nothing_have_different_tokens():
    alone = Request(arrival_s=0, prompt_tokens=64, output_tokens=1)
    sharing = Request(arrival_s=0, prompt_tokens=64, output_tokens=1, hash_ids=(3, 4), hash_block_tokens=16)
    prompts = [
        token_ids(alone, 1000, 0, "a"),
        token_ids(alone, 1000, 0, "b"),
        token_ids(alone, 1000, 1, "a"),
        token_ids(sharing, 1000, 0, "a"),
    ]
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 4
    assert token_ids(sharing, 1000, 0, "b")[:32] == prompts[3][:32]
    assert token_ids(sharing, 1000, 0, "b")[32:] != prompts[3][32:]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"arrival_s": -1}, "arrival_s"),
        ({"arrival_s": math.nan}, "arrival_s"),
        ({"gap_s": -1}, "gap_s"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"output_tokens": 10**12}, "output_tokens"),
        ({"turn": -1}, "turn"),
        ({"hash_ids": (1,)}, "hash_ids"),
        ({"hash_ids": (1, 2), "hash_block_tokens": 10}, "hash_ids"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_field(changes, named):
    with pytest.raises(ValueError, match=named):
        Request(**{"arrival_s": 0.0, "prompt_tokens": 10, "output_tokens": 5, **changes})


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda w: scale_rate(w, 0), "factor"),
        (lambda w: scale_rate(w, math.inf), "factor"),
        (lambda w: scale_lengths(w, prompt=-1), "prompt"),
        (lambda w: scale_lengths(w, output=math.nan), "output"),
        (lambda w: cut(w, 5, 5), "start_s"),
        (lambda w: first(w, -1), "count"),
        (lambda w: splice(w, w, -1), "at_s"),
        (lambda w: token_ids(w.requests[0], 0), "vocabulary"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        change(Workload.of("w", [plain(0)]))
