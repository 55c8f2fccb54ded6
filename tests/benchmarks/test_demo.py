"""Downtime is what the protocol defines, and the demo says no more than what it saw."""

import io
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penstock.benchmarks import demo
from penstock.benchmarks.demo import SEED, TOKENS, Outcome
from penstock.benchmarks.gaps import Arrival, downtimes, inter_token_ms, turns
from penstock.client import Move, Started
from penstock.engine.config import EngineConfig

MOVE = Move(choice=0, source="decode-0", destination="decode-1", done=True, reason="", seconds=0.1)


def stream(*owners: tuple[str, int], step_s: float = 0.01, gap_s: float = 0.05) -> list[Arrival]:
    """One token a step from each owner in turn, with a gap where the owner changes."""
    arrivals: list[Arrival] = []
    for instance, count in owners:
        for place in range(count):
            last_s = arrivals[-1].at_s if arrivals else 0.0
            at_s = last_s + (step_s if place or not arrivals else gap_s)
            arrivals.append(Arrival(at_s, len(arrivals), 1, instance))
    return arrivals


def test_downtime_is_the_gap_less_the_destinations_median_latency():
    (found,) = downtimes(stream(("decode-0", 5), ("decode-1", 5), step_s=0.01, gap_s=0.05))
    assert (found.source, found.destination, found.index) == ("decode-0", "decode-1", 5)
    assert found.gap_ms == pytest.approx(50) and found.itl_ms == pytest.approx(10)
    assert found.ms == pytest.approx(40) and found.steps == pytest.approx(4)


def test_the_destinations_latency_counts_and_not_the_sources():
    slow = stream(("decode-0", 5), step_s=0.03)
    start = slow[-1].at_s + 0.05
    fast = [Arrival(start + 0.01 * place, 5 + place, 1, "decode-1") for place in range(5)]
    (found,) = downtimes([*slow, *fast])
    assert found.itl_ms == pytest.approx(10)


def test_a_move_after_which_too_little_came_is_no_sample():
    arrivals = stream(("decode-0", 5), ("decode-1", 9), ("decode-0", 3))
    assert [found.destination for found in downtimes(arrivals, least_gaps=8)] == ["decode-1"]
    assert downtimes(arrivals[:1]) == downtimes([]) == []


def test_tokens_that_come_together_share_their_time():
    arrivals = [Arrival(0.0, 0, 1, "a"), Arrival(0.04, 1, 4, "a"), Arrival(0.05, 5, 1, "a")]
    assert inter_token_ms(arrivals) == pytest.approx([10, 10])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 4)), max_size=8))
def test_turns_cover_a_stream_once_and_each_has_one_owner(owners):
    arrivals = stream(*owners)
    found = turns(arrivals)
    assert [place for turn in found for place in turn] == list(range(len(arrivals)))
    assert all(len({arrivals[place].instance for place in turn}) == 1 for turn in found)
    owners_in_turn = [arrivals[turn.start].instance for turn in found]
    assert all(one != other for one, other in pairwise(owners_in_turn))


def outcome(arrivals: list[Arrival], token_ids: tuple[int, ...]) -> Outcome:
    started = Started(request_id="r", model="m", seed=SEED, attempt=1, prompt_tokens=3, max_tokens=9)
    return Outcome(started, tuple(arrivals), token_ids, MOVE)


def test_only_a_stream_with_every_token_once_and_in_order_is_whole():
    arrivals = stream(("decode-0", 100), ("decode-1", TOKENS - 100))
    ids = (7,) * TOKENS
    assert outcome(arrivals, ids).whole
    assert not outcome(arrivals[:-1], ids[:-1]).whole
    assert not outcome([*arrivals[:9], *arrivals[10:]], ids).whole
    assert not outcome([*arrivals[:9], arrivals[8], *arrivals[9:]], ids).whole
    assert not outcome([arrivals[1], arrivals[0], *arrivals[2:]], ids).whole


def test_the_downtime_shown_is_of_the_move_and_not_of_the_first_handover():
    arrivals = stream(("prefill-0", 1), ("decode-0", 99), ("decode-1", TOKENS - 100))
    assert outcome(arrivals, (7,) * TOKENS).downtime.destination == "decode-1"


def test_tokens_that_are_not_those_of_transformers_are_told():
    shown = io.StringIO()
    wrong = outcome(stream(("decode-0", TOKENS)), (7,) * TOKENS)
    folder = EngineConfig().folder
    assert not demo._tell_verdict(wrong, folder, Console(file=shown))
    assert "OTHER TOKENS" in shown.getvalue() and "same tokens" not in shown.getvalue()


def test_a_move_that_was_not_done_is_told():
    shown = io.StringIO()
    failed = replace(MOVE, done=False, reason="no room was granted in time")
    seen = replace(outcome(stream(("decode-0", TOKENS)), (7,) * TOKENS), move=failed)
    demo._tell_downtime(seen, Console(file=shown))
    assert "not done: no room was granted in time" in shown.getvalue()


@pytest.mark.timeout(180)
def test_the_demo_moves_a_request_and_finds_the_tokens_of_transformers():
    shown = io.StringIO()
    done = demo.run(Console(file=shown, soft_wrap=True, highlight=False))
    text = shown.getvalue()
    assert done, text
    assert "same tokens: all 256" in text and "downtime" in text and " 0 processes left" in text
    assert "are of decode-0" in text and "are of decode-1" in text
