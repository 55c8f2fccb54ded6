"""`bench prefix`: the trace is whole, the ways to keep blocks agree where they must, and the cache changes no token."""

import random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from penstock.benchmarks import prefix
from penstock.cli.bench import command


def test_the_trace_is_the_published_one():
    requests = prefix.read_trace()
    assert (len(requests), sum(map(len, requests)), max(map(max, requests))) == (12031, 288500, 182789)
    assert list(requests[1])[:3] == [0, 14, 15]
    assert all(len(set(request)) == len(request) for request in requests)


def conversations(seed: int, count: int) -> list[list[int]]:
    """Requests that grow from one another."""
    draw, new = random.Random(seed), iter(range(10**6))
    requests: list[list[int]] = [[next(new)]]
    for _ in range(count):
        known = draw.choice(requests[-8:])
        requests.append(known[: draw.randint(0, 12)] + [next(new) for _ in range(draw.randint(1, 4))])
    return requests


@given(st.integers(0, 1000), st.integers(16, 31))
def test_the_pool_finds_what_a_plain_lru_finds_and_no_more_than_the_bound(seed, capacity):
    requests = conversations(seed, 60)
    hits = prefix.pool_hits(requests, capacity)
    assert hits == prefix.lru_hits(requests, capacity) <= prefix.belady_hits(requests, capacity)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 4))
def test_the_bound_is_what_the_best_of_all_choices_finds(asked, capacity):
    best = {frozenset(): 0}
    for block in asked:
        after: dict[frozenset[int], int] = {}
        for kept, hits in best.items():
            there = kept | {block}
            for gone in [None, *there] if len(there) <= capacity else there:
                left = there - {gone}
                after[left] = max(after.get(left, 0), hits + (block in kept))
        best = after
    assert prefix.belady_hits([[block] for block in asked], capacity) == max(best.values())


def test_with_the_cache_less_is_computed_and_the_same_is_said():
    requests = conversations(1, 12)
    served = [prefix.serve(requests, caches, lambda _: None) for caches in (True, False)]
    assert served[0].outputs == served[1].outputs
    distinct = len({block for request in requests for block in request}) * 16
    assert distinct <= served[0].computed_tokens < served[1].computed_tokens
    assert served[1].computed_tokens == sum(map(len, requests)) * 16


@pytest.mark.parametrize("arguments", [["--capacity", "3"], ["more"]])
def test_what_the_command_does_not_know_is_refused(arguments):
    assert CliRunner().invoke(command, ["prefix", *arguments]).exit_code == 2
