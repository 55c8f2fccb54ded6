"""The registry: whatever happens in whatever order, only the current life of an instance counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cluster.config import ClusterConfig
from penstock.cluster.registry import Registry, Running, State, next_life, specs
from penstock.handover.values import Incarnation

SPECS = specs(ClusterConfig())
RUNNING = Running("127.0.0.1:1", 7, "here")
NAMES = [spec.name for spec in SPECS]

events = st.lists(
    st.tuples(
        st.sampled_from(["starting", "serving", "lost", "found"]), st.sampled_from(NAMES), st.integers(1, 6)
    ),
    max_size=30,
)


def apply(registry: Registry, kind: str, name: str, life: int) -> Registry:
    who = Incarnation(name, life)
    match kind:
        case "starting":
            return registry.starting(name, life) if life > registry[name].life else registry
        case "serving":
            return registry.serving(who, RUNNING)
        case "found":
            return registry.found(who, RUNNING)
        case _:
            return registry.lost(who, "why")


def serving(*names: str) -> Registry:
    registry = Registry.of(SPECS)
    for name in names:
        registry = registry.starting(name, 1).serving(Incarnation(name, 1), RUNNING)
    return registry


def test_mixed_instances_do_both_and_may_be_all_that_there_is():
    made = specs(ClusterConfig(prefill=0, decode=0, mixed=2, prefill_tokens=256, decode_slots=8))
    assert [(one.name, one.pool) for one in made] == [("mixed-0", "mixed"), ("mixed-1", "mixed")]
    assert all((one.prefill_tokens, one.decode_slots) == (256, 8) for one in made)
    assert [one.pool for one in specs(ClusterConfig(decode=1, mixed=1))] == ["prefill", "decode", "mixed"]


def test_the_configuration_makes_two_pools_with_roles_in_numbers():
    assert NAMES == ["prefill-0", "decode-0", "decode-1"]
    assert [(spec.pool, spec.prefill_tokens, spec.decode_slots) for spec in SPECS] == [
        ("prefill", 512, 0),
        ("decode", 512, 64),
        ("decode", 512, 64),
    ]


@given(events)
def test_lives_only_rise_and_only_the_current_one_is_changed(sequence):
    registry = Registry.of(SPECS)
    for kind, name, life in sequence:
        after = apply(registry, kind, name, life)
        assert all(after[other] == registry[other] for other in NAMES if other != name)
        assert after[name].life >= registry[name].life
        if kind in ("serving", "lost") and registry[name].life != life:
            assert after == registry
        registry = after
    assert all(record.usable == (record.state == State.SERVING) for record in registry.records.values())


@given(events)
def test_an_instance_that_is_lost_serves_again_only_in_a_later_life(sequence):
    registry = serving(*NAMES).lost(Incarnation("decode-0", 1), "why")
    for kind, name, life in sequence:
        registry = apply(registry, kind, name, life)
    assert not registry["decode-0"].usable or registry["decode-0"].life > 1


def test_the_reason_of_a_loss_stands_until_the_next_life_serves():
    who = Incarnation("decode-0", 1)
    registry = serving("decode-0").lost(who, "its process died")
    assert registry["decode-0"].reason == "its process died"
    registry = registry.starting("decode-0", 2)
    assert (registry["decode-0"].reason, registry["decode-0"].restarts) == ("its process died", 1)
    assert registry.serving(Incarnation("decode-0", 2), RUNNING)["decode-0"].reason == ""


def test_a_life_does_not_come_twice():
    with pytest.raises(AssertionError):
        serving("decode-0").starting("decode-0", 1)


@given(st.integers(0, 2**62), st.integers(0, 2**63))
def test_the_next_life_is_above_the_last_even_if_the_clock_goes_back(before, now_ns):
    assert next_life(before, now_ns) > before
