"""Laws of dispatch: the freest is picked, a burst does not herd, and the answer depends on values alone."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import cost, instance, with_load

from penstock.policy import dispatch as policy
from penstock.policy.cost import LinkCost
from penstock.policy.dispatch import (
    SETTLE_S,
    Assignment,
    DispatchConfig,
    Memory,
    NoInstance,
    redirect,
    unservable,
)
from penstock.policy.rules import RULES
from penstock.policy.state import InstanceView, LoadView, RequestShape, blocks_for

PREDICTED = DispatchConfig()


def dispatch(request, views, now, seed, memory, wanted="", cfg=PREDICTED, price=None):
    return policy.dispatch(request, views, cfg, now, price, seed, memory, wanted)


def picked(found):
    """Who prefills and who decodes, by name."""
    assert isinstance(found, Assignment), found
    return found.prefill.name, (found.decode or found.prefill).name


def view(name, prefill=0, decode=0, queued=0, free=100, running=0, waiting=0, **more):
    load = LoadView(
        total_blocks=100,
        free_blocks=free,
        prefill_tokens=prefill,
        decode_slots=decode,
        queued_tokens=queued,
        running=running,
        waiting=waiting,
        block_size=16,
        step_s=0.01,
    )
    return InstanceView(name=name, life=1, load=load, **more)


def test_none_is_given_more_whose_steps_would_be_longer_than_promised():
    promised = DispatchConfig(tpot_s=0.02)
    slow, quick = (
        with_load(instance(name), decoding=4, running=4, decode_tokens=400, step_s=step_s)
        for name, step_s in (("slow", 0.05), ("quick", 0.006))
    )
    request = RequestShape(prompt_tokens=50, max_new_tokens=20)
    for price in (None, cost()):
        found, _ = dispatch(request, [slow, quick], 0.0, 0, Memory(), cfg=promised, price=price)
        assert picked(found)[1] == "quick"
        found, _ = dispatch(request, [slow], 0.0, 0, Memory(), cfg=promised, price=price)
        assert isinstance(found, NoInstance) and found.busy and found.ever and "promised" in found.reason
        found, _ = dispatch(request, [slow], 0.0, 0, Memory(), price=price)
        assert isinstance(found, Assignment), "nothing is promised"
        alone = with_load(slow, decoding=0, running=0, decode_tokens=0)
        found, _ = dispatch(request, [alone], 0.0, 0, Memory(), cfg=promised, price=price)
        assert isinstance(found, Assignment), "nobody does better than one that decodes nothing"


VIEWS = st.lists(
    st.builds(
        view,
        name=st.sampled_from("abcdef"),
        prefill=st.sampled_from([0, 512]),
        decode=st.sampled_from([0, 1, 8]),
        queued=st.integers(0, 4000),
        free=st.integers(0, 100),
        running=st.integers(0, 10),
        alive=st.sampled_from([True, True, False]),
        draining=st.sampled_from([False, False, True]),
    ),
    unique_by=lambda made: made.name,
    max_size=6,
)
REQUESTS = st.builds(RequestShape, prompt_tokens=st.integers(1, 2000))
SEEDS = st.integers(0, 2**64 - 1)
CFGS = st.builds(
    DispatchConfig,
    rule=st.sampled_from(RULES),
    itl_target_s=st.sampled_from([0.0, 0.006, 0.1]),
)
PRICES = st.sampled_from([None, cost()])


@settings(deadline=None)
@given(REQUESTS, VIEWS, SEEDS, CFGS, PRICES)
def test_only_instances_that_may_are_picked(request_, views, seed, cfg, price):
    found, _ = dispatch(request_, views, 0.0, seed, Memory(), cfg=cfg, price=price)
    fits = request_.prompt_tokens + 1 <= 1600
    prefills, decodes = [v for v in views if v.may_prefill], [v for v in views if v.may_decode]
    if prefills and decodes and fits:
        assert isinstance(found, Assignment)
        assert found.prefill in prefills and (found.decode or found.prefill) in decodes
        assert found.decode is None or found.decode.key != found.prefill.key
    else:
        assert isinstance(found, NoInstance) and found.reason
        assert found.ever == (not (prefills and decodes))


@settings(deadline=None)
@given(REQUESTS.filter(lambda r: r.prompt_tokens < 1600), VIEWS, SEEDS)
def test_the_shortest_queue_and_the_most_room_win(request_, views, seed):
    found, _ = dispatch(request_, views, 0.0, seed, Memory())
    if isinstance(found, Assignment):
        prefills = [v for v in views if v.may_prefill]
        undisturbed = [v for v in prefills if not v.may_decode] or prefills
        assert found.prefill in undisturbed
        assert found.prefill.load.queued_tokens == min(v.load.queued_tokens for v in undisturbed)
        slots = [v.load.free_blocks for v in views if v.may_decode and v.load.running < v.load.decode_slots]
        if slots:
            assert (found.decode or found.prefill).load.free_blocks == max(slots)


@settings(deadline=None)
@given(REQUESTS, VIEWS, SEEDS, CFGS, PRICES, st.randoms())
def test_the_order_of_the_views_does_not_matter(request_, views, seed, cfg, price, random):
    shuffled = random.sample(views, len(views))
    found, again = (
        dispatch(request_, some, 0.0, seed, Memory(), cfg=cfg, price=price) for some in (views, shuffled)
    )
    assert found == again


def test_a_lone_instance_prefills_and_decodes_without_a_handover():
    found, _ = dispatch(RequestShape(prompt_tokens=10), [view("a", 512, 8)], 0.0, 0, Memory())
    assert isinstance(found, Assignment) and found.prefill.name == "a" and found.decode is None


def test_an_instance_that_is_best_at_both_keeps_the_request():
    views = [view("a", 512, 8), view("b", 512, 8, queued=5)]
    for seed in range(4):
        found, _ = dispatch(RequestShape(prompt_tokens=10), views, 0.0, seed, Memory())
        assert isinstance(found, Assignment) and found.prefill.name == "a" and found.decode is None


def test_what_decodes_prefills_only_where_nothing_else_does():
    mixed, busy = view("m", 512, 8), view("p", 512, queued=4000)
    found, _ = dispatch(RequestShape(prompt_tokens=10), [mixed, busy], 0.0, 0, Memory())
    assert isinstance(found, Assignment) and found.decode is not None
    assert (found.prefill.name, found.decode.name) == ("p", "m")
    found, _ = dispatch(RequestShape(prompt_tokens=10), [mixed, replace(busy, alive=False)], 0.0, 0, Memory())
    assert isinstance(found, Assignment) and found.prefill.name == "m" and found.decode is None


def test_a_burst_under_one_view_spreads_evenly():
    views = [view("p", 512), view("q", 512), view("d", 0, 64), view("e", 0, 64)]
    memory, counts = Memory(), {}
    for seed in range(20):
        found, memory = dispatch(RequestShape(prompt_tokens=64), views, 0.0, seed, memory)
        assert isinstance(found, Assignment) and found.decode is not None
        for picked in (found.prefill.name, found.decode.name):
            counts[picked] = counts.get(picked, 0) + 1
    assert counts == {"p": 10, "q": 10, "d": 10, "e": 10}


def test_a_claim_lasts_until_a_view_can_show_it():
    views = [view("p", 512), view("d", 0, 8)]
    _, memory = dispatch(RequestShape(prompt_tokens=64), views, 0.0, 0, Memory())
    early = [replace(v, seen_at=SETTLE_S / 2) for v in views]
    late = [replace(v, seen_at=10.0) for v in views]
    _, kept = redirect(RequestShape(prompt_tokens=1), early, frozenset(), 1.0, 0, memory)
    _, gone = redirect(RequestShape(prompt_tokens=1), late, frozenset(), 10.0, 0, memory)
    assert (len(kept.claims), len(gone.claims)) == (3, 1)  # each with the claim of the redirect itself


def test_memory_does_not_grow_with_requests_that_views_show():
    memory = Memory()
    for tick in range(100):
        views = [view("p", 512, seen_at=tick), view("d", 0, 8, seen_at=tick)]
        _, memory = dispatch(RequestShape(prompt_tokens=64), views, float(tick), tick, memory)
    assert len(memory.claims) == 2


def test_claims_on_an_instance_that_is_gone_are_forgotten():
    _, memory = dispatch(RequestShape(prompt_tokens=64), [view("a", 512, 8)], 0.0, 0, Memory())
    _, memory = dispatch(RequestShape(prompt_tokens=64), [view("b", 512, 8)], 60.0, 0, memory)
    assert [claim.instance for claim in memory.claims] == [("b", 1)]


def test_another_destination_is_none_that_is_avoided():
    views = [view("p", 512), view("d", 0, 8), view("e", 0, 8, free=1)]
    found, _ = redirect(RequestShape(prompt_tokens=10), views, frozenset({("d", 1)}), 0.0, 0, Memory())
    assert isinstance(found, InstanceView) and found.name == "e"
    none, _ = redirect(
        RequestShape(prompt_tokens=10), views, frozenset({("d", 1), ("e", 1)}), 0.0, 0, Memory()
    )
    assert isinstance(none, NoInstance)


def test_a_wanted_instance_decodes_and_prefills_if_it_may():
    views = [view("p", 512), view("d", 0, 8), view("e", 0, 8, free=1), view("m", 512, 8, queued=9, free=1)]
    shape = RequestShape(prompt_tokens=10)
    found, _ = dispatch(shape, views, 0.0, 0, Memory(), wanted="e")
    assert isinstance(found, Assignment) and found.decode is not None
    assert (found.prefill.name, found.decode.name) == ("p", "e")
    found, _ = dispatch(shape, views, 0.0, 0, Memory(), wanted="m")
    assert isinstance(found, Assignment) and found.prefill.name == "m" and found.decode is None
    there, _ = redirect(shape, views, frozenset({("d", 1)}), 0.0, 0, Memory(), wanted="e")
    assert isinstance(there, InstanceView) and there.name == "e"
    for name in ("p", "nobody"):
        assert isinstance(dispatch(shape, views, 0.0, 0, Memory(), wanted=name)[0], NoInstance)
        assert isinstance(redirect(shape, views, frozenset(), 0.0, 0, Memory(), wanted=name)[0], NoInstance)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 128))
def test_blocks_hold_their_tokens_and_not_a_block_more(tokens, size):
    assert (blocks_for(tokens, size) - 1) * size < tokens <= blocks_for(tokens, size) * size or tokens == 0


def test_a_windowed_request_fits_where_its_window_does():
    one = view("a", 512, 8)
    long = RequestShape(prompt_tokens=5000)
    assert isinstance(dispatch(long, [one], 0.0, 1, Memory())[0], NoInstance)
    for most, fits in ((100, True), (101, False)):
        windowed = replace(one, load=replace(one.load, most_blocks=most))
        found, memory = dispatch(long, [windowed], 0.0, 1, Memory())
        assert isinstance(found, Assignment) is fits
        assert not fits or [claim.blocks for claim in memory.claims] == [100]
    assert one.load.blocks_of(5000) == blocks_for(5000, 16)


def test_what_waits_for_its_prefill_where_it_is_to_decode_takes_a_slot():
    """Recovered requests are prefilled where they decode."""
    views = [view("a", 512, 4, running=1, waiting=3), view("b", 512, 4, running=3, free=10)]
    for seed in range(8):
        found, _ = redirect(RequestShape(prompt_tokens=10), views, frozenset(), 0.0, seed, Memory())
        assert found.name == "b"


# ---- simple rules


def mixed(*loads):
    return [with_load(instance(name), **load) for name, load in zip("abcd", loads, strict=False)]


def spread(rule, views, count, shape=None):
    """Who decodes each of so many requests that come at once."""
    memory, names = Memory(), []
    for seed in range(count):
        found, memory = dispatch(
            shape or RequestShape(prompt_tokens=16), views, 0.0, seed, memory, cfg=DispatchConfig(rule=rule)
        )
        prefill, decode = picked(found)
        assert prefill == decode, "one that may do both keeps the request"
        names.append(decode)
    return names


def test_round_robin_takes_one_after_the_other_whatever_they_have():
    assert spread("round_robin", mixed({}, {"held_blocks": 190, "running": 9}, {}), 6) == list("abcabc")


def test_the_least_loaded_counts_what_waits_for_memory():
    views = mixed({"held_blocks": 50}, {"queued_tokens": 16 * 40})
    assert spread("least_loaded", views, 1) == ["b"]
    assert spread("least_loaded", [with_load(views[0], held_blocks=30), views[1]], 1) == ["a"]


def test_the_freest_is_not_always_the_least_loaded():
    """By what it is predicted to need, over the number of those that will take the rest."""
    few_long = {"held_blocks": 60, "peak_blocks": 180, "running": 2}
    many_short = {"held_blocks": 80, "peak_blocks": 90, "running": 4}
    assert spread("least_loaded", mixed(few_long, many_short), 1) == ["a"]
    assert spread("freeness", mixed(few_long, many_short), 1) == ["b"]


def test_freeness_counts_all_that_waits_when_one_more_is_to_come():
    queue = {"held_blocks": 100, "running": 4, "waiting": 5, "head_blocks": 10, "queued_tokens": 16 * 90}
    fuller = {"held_blocks": 150, "running": 4}
    assert spread("freeness", mixed(queue, fuller), 1) == ["b"]
    assert spread("freeness", mixed({**queue, "waiting": 1, "queued_tokens": 160}, fuller), 1) == ["a"]


def test_freeness_lets_no_prompt_wait_for_memory_that_another_has():
    few = {"held_blocks": 150, "free_blocks": 50, "running": 1}
    many = {"held_blocks": 100, "free_blocks": 100, "running": 20}
    assert spread("freeness", mixed(few, many), 1) == ["a"]
    assert spread("freeness", mixed(few, many), 1, RequestShape(prompt_tokens=1000)) == ["b"]
    assert spread("freeness", mixed(few, few), 2, RequestShape(prompt_tokens=1000)) == ["a", "b"]


def test_power_of_two_avoids_the_worst_of_each_two_and_knows_all():
    views = mixed({"held_blocks": 199, "running": 1}, {}, {}, {})
    names = [
        picked(
            dispatch(
                RequestShape(prompt_tokens=1),
                views,
                0.0,
                seed,
                Memory(),
                cfg=DispatchConfig(rule="power_of_two"),
            )[0]
        )[1]
        for seed in range(24)
    ]
    assert set(names) == {"b", "c", "d"}
    assert spread("power_of_two", views[:1], 1) == ["a"]


def test_simple_rules_leave_prefills_to_those_that_do_nothing_else():
    views = [view("p", 512), view("q", 512), *mixed({}, {})]
    for rule in ("round_robin", "least_loaded", "power_of_two", "freeness"):
        for seed in range(4):
            found, _ = dispatch(
                RequestShape(prompt_tokens=8), views, 0.0, seed, Memory(), cfg=DispatchConfig(rule=rule)
            )
            prefill, decode = picked(found)
            assert prefill in "pq" and decode in "ab"


# ---- prediction


def predict(views, itl_target_s=0.0, seed=0, memory=None, price=None, **shape):
    shape = {"prompt_tokens": 64, "max_new_tokens": 100} | shape
    cfg = DispatchConfig(itl_target_s=itl_target_s)
    found, _ = dispatch(
        RequestShape(**shape), views, 0.0, seed, memory or Memory(), cfg=cfg, price=price or cost()
    )
    return picked(found)


BUSY = {"decoding": 8, "running": 8, "decode_tokens": 1600, "held_blocks": 100}
QUIET = {"decoding": 1, "running": 1, "decode_tokens": 100, "held_blocks": 7}


def pools(*decodes, queued=0):
    """One instance that prefills, and some that decode and could prefill."""
    prefill = with_load(instance("p"), decode_slots=0, queued_tokens=queued)
    return [prefill, *mixed(*decodes)]


def test_the_decode_instance_with_the_shortest_steps_is_taken():
    assert predict(pools(BUSY, QUIET), prompt_tokens=1500) == ("p", "b")


def test_one_without_room_is_the_last_choice_however_fast():
    full = {**QUIET, "peak_blocks": 199}
    assert predict(pools(BUSY, full), prompt_tokens=1500) == ("p", "a")
    no_slot = {**QUIET, "decode_slots": 1}
    assert predict(pools(BUSY, no_slot), prompt_tokens=1500) == ("p", "a")


def test_a_short_prompt_is_prefilled_where_it_is_decoded_if_that_is_faster_and_harms_nobody():
    views = pools(QUIET, queued=4000)
    assert predict(views, itl_target_s=0.05) == ("a", "a")
    assert predict(views) == ("p", "a"), "nobody says what harms it"
    assert predict(views, itl_target_s=0.0051) == ("p", "a"), "its decode would be late"
    assert predict(pools({}, queued=4000)) == ("a", "a"), "nothing decodes there"


def test_a_long_prompt_is_not_squeezed_in_between_decodes():
    assert predict(pools(QUIET), itl_target_s=0.02, prompt_tokens=1500) == ("p", "a")


def test_a_prompt_goes_where_its_prefix_is():
    views = pools(QUIET, QUIET)
    cached = {("b", 1): 1984}
    assert predict(views, itl_target_s=0.05, prompt_tokens=2000, cached=cached) == ("b", "b")
    two = [with_load(instance(name), decode_slots=0) for name in "pq"] + mixed(BUSY)
    assert predict(two, prompt_tokens=2000, cached={("q", 1): 1500})[0] == "q"
    assert predict(two, prompt_tokens=2000, cached={("p", 1): 1500})[0] == "p"
    queued = [with_load(two[0], queued_tokens=3000), *two[1:]]
    assert predict(queued, prompt_tokens=2000, cached={("p", 1): 500})[0] == "q", "the queue costs more"


def test_a_cheap_link_is_taken_before_a_dear_one():
    links = {
        "local": LinkCost(latency_s=1e-4, bandwidth_bytes_per_s=1e9),
        "gloo": LinkCost(latency_s=1e-2, bandwidth_bytes_per_s=1e6),
    }
    near, far = mixed(BUSY, BUSY)
    views = [with_load(instance("p"), decode_slots=0), near, replace(far, address="elsewhere:1")]
    for seed in range(4):
        price = replace(cost(), links=links)
        assert predict(views, seed=seed, price=price, prompt_tokens=1500) == ("p", "a")


def test_what_prompts_queue_at_a_decode_instance_counts_against_it():
    assert predict(pools({**BUSY, "queued_tokens": 3000}, BUSY), prompt_tokens=1500) == ("p", "b")


def test_a_burst_is_spread_by_prediction_too():
    views, memory, counts = pools(BUSY, BUSY), Memory(), Counter()
    for seed in range(20):
        found, memory = dispatch(
            RequestShape(prompt_tokens=32, max_new_tokens=50), views, 0.0, seed, memory, price=cost()
        )
        counts[picked(found)] += 1
    assert counts == {("p", "a"): 10, ("p", "b"): 10}


def test_a_fleet_of_mixed_instances_hands_nothing_over():
    for seed in range(4):
        prefill, decode = predict(mixed(BUSY, QUIET, BUSY), seed=seed)
        assert (prefill, decode) == ("b", "b")


# ---- who has enough


def test_nobody_is_given_more_than_it_may_have_before_it():
    cfg, shape = DispatchConfig(ahead_s=0.5), RequestShape(prompt_tokens=64)
    for price in (None, cost()):
        free = pools(BUSY, queued=512)
        full = pools(BUSY, queued=51200)
        assert picked(dispatch(shape, free, 0.0, 0, Memory(), cfg=cfg, price=price)[0])
        held, memory = dispatch(shape, full, 0.0, 0, Memory(), cfg=cfg, price=price)
        assert isinstance(held, NoInstance) and held.ever and memory == Memory()
        assert picked(dispatch(shape, full, 0.0, 0, Memory(), price=price)[0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("price", [None, cost()])
def test_who_has_enough_is_passed_over_while_another_may_have_more(rule, price):
    """Though it be the next in turn, or hold the prefix."""
    cfg, memory = DispatchConfig(rule=rule, ahead_s=0.5), Memory()
    shape = RequestShape(prompt_tokens=640, cached={("p0", 1): 624, ("m0", 1): 624})
    for full, free in (("p0", "p1"), ("m0", "m1")):
        slots = 8 * full.startswith("m")
        views = [view(full, 512, slots, queued=51200), view(free, 512, slots), view("d", 0, 8)]
        for seed in range(6):
            found, memory = dispatch(shape, views, 60.0 * seed, seed, memory, cfg=cfg, price=price)
            assert picked(found)[0] == free
    assert memory.turn == 12


@pytest.mark.parametrize("rule", RULES)
def test_a_prompt_waits_rather_than_stall_who_decodes(rule):
    cfg, decoding = DispatchConfig(rule=rule, ahead_s=0.5), view("m", 512, 8, running=4)
    views = [view("p", 512, queued=51200), with_load(decoding, decoding=4)]
    for price in (None, cost()):
        found, _ = dispatch(RequestShape(prompt_tokens=64), views, 0.0, 0, Memory(), cfg=cfg, price=price)
        assert isinstance(found, NoInstance) and found.busy


def test_what_was_given_counts_before_it_is_seen():
    views, memory, given = pools(BUSY), Memory(), 0
    for seed in range(100):
        found, memory = dispatch(
            RequestShape(prompt_tokens=512), views, 0.0, seed, memory, cfg=DispatchConfig(ahead_s=0.5)
        )
        given += isinstance(found, Assignment)
    assert 0.5 / 0.01 <= given < 100


def test_what_fits_no_instance_is_known_at_once():
    views = pools(BUSY)
    assert unservable(RequestShape(prompt_tokens=10**6), views)
    assert unservable(RequestShape(prompt_tokens=10), views) is None
    assert unservable(RequestShape(prompt_tokens=10**6), []) is None, "nobody is there yet"


@pytest.mark.parametrize("wrong", [{"rule": "random"}, {"ahead_s": -1.0}, {"itl_target_s": math.nan}])
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DispatchConfig(**wrong)


def test_memory_that_is_free_now_and_will_be_needed_is_not_free():
    views = [view("p", 512), with_load(view("d", 0, 8), peak_blocks=90), view("e", 0, 8, free=50)]
    found, _ = dispatch(RequestShape(prompt_tokens=10), views, 0.0, 0, Memory())
    assert picked(found) == ("p", "e")
    found, _ = redirect(RequestShape(prompt_tokens=10), views, frozenset(), 0.0, 0, Memory())
    assert isinstance(found, InstanceView) and found.name == "e"
