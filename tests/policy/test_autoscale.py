"""Laws of scaling: pools keep their bounds and their rest, one pool is never pulled two ways, flips come first."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import TOTAL, instance, with_load

from penstock.policy.autoscale import AutoscaleConfig, Memory, PoolLimits, Sample, autoscale
from penstock.policy.state import Scale

CFG = AutoscaleConfig(
    limits={"prefill": PoolLimits(least=1, most=3), "decode": PoolLimits(least=1, most=3)},
    short_s=5.0,
    idle_s=20.0,
    cooldown_s=10.0,
)
BUSY = {"held_blocks": TOTAL - 2, "running": 20}
MIDDLE = {"held_blocks": TOTAL // 2, "running": 10}
IDLE = {"held_blocks": 0, "running": 0}
FLOODED = {"queued_tokens": 512 * 20}


def member(pool, number, load, **more):
    return with_load(instance(f"{pool}-{number}", pool=pool, **more), **load)


def pools(prefill, decode):
    """Views of two pools, one for each load."""
    return tuple(
        member(pool, number, load)
        for pool, loads in (("prefill", prefill), ("decode", decode))
        for number, load in enumerate(loads)
    )


def steady(views, until, attainment=None):
    return [Sample(float(at), views, attainment or {}) for at in range(int(until) + 1)]


def decide(views, until=60, attainment=None, cfg=CFG, memory=None):
    actions, _ = autoscale(steady(views, until, attainment), cfg, float(until), memory or Memory())
    return [(action.kind, action.pool, action.to) for action in actions]


LOADS = st.sampled_from([BUSY, MIDDLE, IDLE, FLOODED])
VIEWS = st.builds(
    pools, st.lists(LOADS, min_size=1, max_size=4), st.lists(LOADS, min_size=1, max_size=4)
).flatmap(
    lambda views: st.tuples(
        *(
            st.builds(
                replace,
                st.just(view),
                alive=st.sampled_from([True, True, True, False]),
                draining=st.sampled_from([False, False, False, True]),
            )
            for view in views
        )
    )
)
RATES = st.dictionaries(st.sampled_from(["prefill", "decode"]), st.sampled_from([0.5, 0.95, 1.0]))


@st.composite
def lives(draw):
    """What was seen each second of a minute or two, in phases of one load."""
    history, at = [], 0.0
    for _ in range(draw(st.integers(1, 5))):
        views, rates = draw(VIEWS), draw(RATES)
        for _ in range(draw(st.integers(1, 40))):
            history.append(Sample(at, views, rates))
            at += 1.0
    return history


@settings(max_examples=60)
@given(lives())
def test_pools_keep_their_bounds_and_their_rest_and_are_pulled_one_way(history):
    memory, changed = Memory(), {}
    for place, sample in enumerate(history):
        actions, memory = autoscale(history[: place + 1], CFG, sample.at, memory)
        touched = Counter(pool for action in actions for pool in (action.pool, action.to) if pool)
        assert not touched or max(touched.values()) == 1
        for pool in touched:
            assert sample.at - changed.get(pool, -math.inf) >= CFG.cooldown_s
            changed[pool] = sample.at
        for action in actions:
            members = [view for view in sample.views if view.pool == action.pool]
            there = [view for view in members if not view.draining]
            serving = {view.key for view in there if view.alive}
            coming = {view.key for view in there if not view.alive}
            growing = {Scale.GROW: action.pool, Scale.FLIP: action.to}.get(action.kind)
            if growing:
                assert sum(view.pool == growing for view in sample.views) < CFG.limits[growing].most
            if action.kind is Scale.GROW:
                assert not coming
            elif action.instance in serving:
                assert len(serving) > CFG.limits[action.pool].least
            else:
                assert action.kind is Scale.DRAIN and action.instance in coming
                assert len(there) > CFG.limits[action.pool].least


def test_a_pool_that_is_short_for_long_enough_grows():
    views = pools([MIDDLE], [BUSY])
    assert decide(views, until=4) == []
    assert decide(views, until=5) == [(Scale.GROW, "decode", "")]
    assert decide(pools([MIDDLE], [BUSY] * 3)) == [], "it is as large as it may be"


def test_a_moment_of_ease_begins_the_wait_anew():
    history = steady(pools([MIDDLE], [BUSY]), 60)
    history[-3] = replace(history[-3], views=pools([MIDDLE], [MIDDLE]))
    assert autoscale(history, CFG, 60.0, Memory())[0] == []


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("attainment", "50% of its requests meet their SLO"),
        ("queue", "steps of prompts wait"),
        ("freeness", "it is free for"),
        ("routers", "2 requests wait for it at the routers"),
    ],
)
def test_each_cause_of_shortage_is_seen_and_told(cause, words):
    views = pools([FLOODED if cause == "queue" else MIDDLE], [BUSY if cause == "freeness" else MIDDLE])
    rates = {"decode": 0.5} if cause == "attainment" else {}
    waiting = {"decode": 2} if cause == "routers" else {}
    history = [replace(sample, waiting=waiting) for sample in steady(views, 9, rates)]
    (action,), _ = autoscale(history, CFG, 9.0, Memory())
    assert action.kind is Scale.GROW and words in action.reason


def test_a_pool_that_requests_wait_for_is_not_drained():
    views = pools([MIDDLE], [IDLE, IDLE])
    history = [replace(sample, waiting={"decode": 1}) for sample in steady(views, 60)]
    assert autoscale(history, CFG, 60.0, Memory())[0] == []


def test_a_pool_that_idles_for_longer_is_drained_of_its_emptiest():
    views = pools([MIDDLE], [{**IDLE, "running": 1, "held_blocks": 4}, IDLE])
    assert decide(views, until=19) == []
    (action,), _ = autoscale(steady(views, 20), CFG, 20.0, Memory())
    assert (action.kind, action.instance) == (Scale.DRAIN, ("decode-1", 1))


def test_a_pool_whose_rest_could_not_bear_it_is_not_drained():
    quiet = {"held_blocks": 60, "running": 4}
    cfg = replace(CFG, high_steps=400.0)
    assert decide(pools([MIDDLE], [quiet, quiet]), cfg=cfg) == []
    assert decide(pools([MIDDLE], [quiet, IDLE]), cfg=cfg) == [(Scale.DRAIN, "decode", "")]


def test_when_the_shape_of_requests_shifts_an_idle_pool_gives_one_of_its_own():
    assert decide(pools([IDLE, IDLE], [BUSY]), until=5) == [(Scale.FLIP, "prefill", "decode")]
    assert decide(pools([FLOODED], [IDLE, IDLE]), until=5) == [(Scale.FLIP, "decode", "prefill")]
    assert decide(pools([IDLE], [BUSY]), until=5) == [(Scale.GROW, "decode", "")], "its last stays"
    assert decide(pools([MIDDLE, MIDDLE], [BUSY]), until=5) == [(Scale.GROW, "decode", "")], "it is in use"


def test_what_was_changed_rests_and_gives_nothing_meanwhile():
    views = pools([IDLE, IDLE], [BUSY])
    assert decide(views, memory=Memory({"decode": 51.0})) == [(Scale.DRAIN, "prefill", "")]
    assert decide(views, memory=Memory({"prefill": 51.0})) == [(Scale.GROW, "decode", "")]
    assert decide(views, memory=Memory({"prefill": 50.0})) == [(Scale.FLIP, "prefill", "decode")]


def test_one_that_is_starting_counts_before_it_serves():
    views = (*pools([MIDDLE], [BUSY, BUSY]), member("decode", 9, IDLE, alive=False))
    assert decide(views) == []


def test_a_pool_with_one_that_waits_for_room_has_others_flipped_to_it_and_does_not_grow():
    waits = member("decode", 1, IDLE, alive=False, placed=False)
    assert decide((*pools([MIDDLE], [BUSY]), waits)) == []
    assert decide((*pools([IDLE, IDLE], [BUSY]), waits)) == [(Scale.FLIP, "prefill", "decode")]
    assert decide((*pools([FLOODED], [BUSY]), waits)) == [(Scale.GROW, "prefill", "")]


def test_an_idle_pool_takes_back_the_one_without_room_then_the_one_that_starts_then_its_emptiest():
    coming = {number: member("decode", number, IDLE, alive=False, placed=number != 7) for number in (5, 6, 7)}
    views = pools([MIDDLE], [IDLE, {**IDLE, "running": 1, "held_blocks": 4}])
    for drained in (7, 5, 6, 0):
        there = (*views, *coming.values())
        (action,), _ = autoscale(steady(there, 20), CFG, 20.0, Memory())
        assert (action.kind, action.instance) == (Scale.DRAIN, (f"decode-{drained}", 1))
        coming.pop(drained, None)
    cfg = replace(CFG, limits={"decode": PoolLimits(least=3, most=4)})
    assert decide((*views, member("decode", 9, IDLE, alive=False, placed=False)), cfg=cfg) == []


def test_a_pool_that_will_soon_have_idled_for_long_enough_is_waited_for():
    history = steady(pools([MIDDLE, MIDDLE], [BUSY]), 9)
    history[-1] = replace(history[-1], views=pools([IDLE, IDLE], [BUSY]))
    assert autoscale(history, CFG, 9.0, Memory())[0] == []
    assert [one.kind for one in autoscale(history[:-1], CFG, 8.0, Memory())[0]] == [Scale.GROW]


def test_a_change_tells_the_figures_of_its_pools():
    (action,), _ = autoscale(steady(pools([IDLE, IDLE], [BUSY]), 9, {"decode": 0.5}), CFG, 9.0, Memory())
    assert action.figures["decode_attainment"] == 0.5 and action.figures["prefill_serving"] == 2
    assert action.figures["decode_free_steps"] < action.figures["prefill_free_steps"]


def test_a_pool_that_somebody_made_smaller_than_it_may_be_grows_at_once():
    cfg = replace(CFG, limits={"decode": PoolLimits(least=2, most=3)})
    (action,), _ = autoscale(steady(pools([MIDDLE], [MIDDLE]), 0), cfg, 0.0, Memory())
    assert (action.kind, action.reason) == (Scale.GROW, "it has 1 instances, and 2 at least")
    starting = (*pools([MIDDLE], [MIDDLE]), member("decode", 9, IDLE, alive=False))
    assert decide(starting, cfg=cfg) == []


def test_a_pool_that_nobody_named_is_left_alone():
    assert decide(pools([FLOODED], [BUSY]), cfg=replace(CFG, limits={})) == []


@pytest.mark.parametrize(
    ("kind", "wrong", "named"),
    [
        (PoolLimits, {"least": 0}, "least"),
        (PoolLimits, {"least": 3, "most": 2}, "most"),
        (AutoscaleConfig, {"attainment": 1.5}, "attainment"),
        (AutoscaleConfig, {"low_steps": 1000.0}, "low_steps"),
        (AutoscaleConfig, {"idle_steps": 9.0}, "idle_steps"),
        (AutoscaleConfig, {"cooldown_s": -1.0}, "cooldown_s"),
        (AutoscaleConfig, {"short_s": math.nan}, "short_s"),
    ],
)
def test_a_wrong_setting_is_named(kind, wrong, named):
    with pytest.raises(ValueError, match=named):
        kind(**wrong)
