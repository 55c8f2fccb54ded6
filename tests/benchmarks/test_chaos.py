"""Chaos: which faults are drawn and where they are aimed, what it measures of a gap, and what its verdict fails."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.benchmarks import network
from penstock.benchmarks.chaos import MUST_BE_0, Chaos, failures
from penstock.benchmarks.exercise import Stream
from penstock.benchmarks.faults import KINDS, aim, draw_kinds
from penstock.benchmarks.storm import Run
from penstock.benchmarks.trials import draw_trials
from penstock.client.cluster import from_cluster
from penstock.proto import control_pb2 as pb

CLEAN = dict.fromkeys(MUST_BE_0, 0.0) | {"ties": 0.0, "tokens": 1e5, "faults": 14.0}
(TRIAL,) = draw_trials(1, 0, 1, vocabulary=100, context_tokens=2048)


def cluster(states):
    """A cluster as a controller tells it: {name: state}."""
    instances = [
        pb.Instance(
            name=name,
            pool=name.partition("-")[0],
            pid=100 + number,
            address=f"127.0.0.1:{5000 + number}",
            state=pb.InstanceState.Value(f"INSTANCE_STATE_{state.upper()}"),
        )
        for number, (name, state) in enumerate(states.items())
    ]
    return from_cluster(pb.GetClusterResponse(instances=instances))


def test_a_round_holds_every_kind_and_the_seed_alone_decides_the_order():
    drawn = draw_kinds(2 * sum(KINDS.values()), list(KINDS), random.Random(3))
    assert Counter(drawn) == {kind: 2 * count for kind, count in KINDS.items()}
    assert drawn == draw_kinds(len(drawn), list(KINDS), random.Random(3))
    assert drawn != draw_kinds(len(drawn), list(KINDS), random.Random(4))


@given(
    st.dictionaries(
        st.sampled_from(["prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2"]),
        st.sampled_from(["serving", "starting", "lost"]),
    ),
    st.sampled_from(["kill_prefill", "kill_decode", "hang", "partition", "slow_link", "messages"]),
    st.integers(0, 99),
)
def test_the_last_of_a_pool_is_never_struck(states, kind, seed):
    fault = aim(kind, cluster(states), "nobody", random.Random(seed))
    serving = [name for name, state in states.items() if state == "serving"]
    if fault is None:
        return
    left = [name for name in serving if name != fault.target]
    assert fault.target in serving and fault.pid == 100 + list(states).index(fault.target)
    assert {name.partition("-")[0] for name in left} == {"prefill", "decode"}
    if kind.startswith("kill"):
        assert fault.target.startswith(kind.removeprefix("kill_"))


def test_a_gap_runs_from_the_last_token_before_the_fault_to_the_next():
    run = Run(
        TRIAL, [Stream(TRIAL)], began=10.0, arrivals=[(11.0, "p"), (12.0, "d"), (15.0, "e")], ended=16.0
    )
    assert [run.owner(at) for at in (9.0, 10.5, 11.5, 14.0, 16.5)] == [None, "", "p", "d", None]
    assert [run.gap_s(at) for at in (10.5, 11.5, 14.0, 15.5)] == [1.0, 1.0, 3.0, 1.0]


def test_the_verdict_fails_whatever_must_be_0_and_faults_that_did_not_happen():
    assert list(failures(CLEAN, 14)) == []
    for name in MUST_BE_0:
        (sentence,) = failures(CLEAN | {name: 1.0}, 14)
        assert name in sentence
    assert list(failures(CLEAN | {"ties": 11.0}, 14)) and not list(failures(CLEAN | {"ties": 10.0}, 14))
    assert list(failures(CLEAN, 15))


@pytest.mark.parametrize("wrong", [{"faults": -1}, {"minutes": 0.0}, {"prefill": 1}, {"decode": 1}])
def test_what_cannot_be_asked_is_refused(wrong):
    asked = Chaos(faults=3, seed=0, minutes=1.0)
    with pytest.raises(ValueError):
        replace(asked, **wrong)


def test_rules_cut_one_way_or_both_and_limit_the_bytes():
    assert network.cut(7, "to") == ["tcp dport 7 drop"] and network.cut(7, "from") == ["tcp sport 7 drop"]
    assert len(network.cut(7, "both")) == 2
    assert all("512 kbytes/second" in rule for rule in network.slow(7, 512 << 10))
