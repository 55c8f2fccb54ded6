"""Laws of dispatch: the freest is picked, a burst does not herd, and the answer depends on values alone."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.policy.dispatch import SETTLE_S, Assignment, Memory, NoInstance, dispatch, redirect
from penstock.policy.state import InstanceView, LoadView, RequestShape, blocks_for


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


@settings(deadline=None)
@given(REQUESTS, VIEWS, SEEDS)
def test_only_instances_that_may_are_picked(request_, views, seed):
    found, _ = dispatch(request_, views, 0.0, seed, Memory())
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
@given(REQUESTS, VIEWS, SEEDS, st.randoms())
def test_the_order_of_the_views_does_not_matter(request_, views, seed, random):
    shuffled = random.sample(views, len(views))
    assert dispatch(request_, views, 0.0, seed, Memory()) == dispatch(request_, shuffled, 0.0, seed, Memory())


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


def test_what_waits_for_its_prefill_where_it_is_to_decode_takes_a_slot():
    """Recovered requests are prefilled where they decode."""
    views = [view("a", 512, 4, running=1, waiting=3), view("b", 512, 4, running=3, free=10)]
    for seed in range(8):
        found, _ = redirect(RequestShape(prompt_tokens=10), views, frozenset(), 0.0, seed, Memory())
        assert found.name == "b"
