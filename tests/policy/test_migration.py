"""Laws of migration: nothing goes where it may not, nobody is worse off, nothing goes to and fro, and drains end."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import TOTAL, cost, fleets, instance, moved, with_load

from penstock.policy.freeness import freeness
from penstock.policy.migration import Memory, MigrationConfig, failed, plan_moves
from penstock.policy.state import MoveReason, Priority, SequenceView, blocks_for

CFG = MigrationConfig(
    low_steps=32.0, enough_steps=96.0, high_steps=192.0, most_per_instance=2, most_per_link=1
)
BETTER = {MoveReason.BALANCE, MoveReason.MAKE_ROOM, MoveReason.HEADROOM}
TIGHT = MigrationConfig(low_steps=60.0, enough_steps=60.0, high_steps=60.0)
CFGS = st.sampled_from([CFG, TIGHT, MigrationConfig()])
COSTS = st.sampled_from([None, cost(), cost(copy_bytes_per_s=1e6)])


def running(name, tokens, remaining, count, **more):
    return [
        SequenceView(session=f"{name}{number}", tokens=tokens, remaining=remaining, **more)
        for number in range(count)
    ]


def plan(views, cfg=CFG, now=0.0, price=None, memory=None):
    return plan_moves(views, cfg, now, price, memory or Memory())


def worst(views):
    return min((freeness(view) for view in views if view.may_decode), default=math.inf)


@settings(max_examples=200)
@given(fleets(), COSTS)
def test_moves_start_where_the_sequence_runs_and_end_where_it_may_decode(views, price):
    moves, _ = plan(views, price=price)
    by_key = {view.key: view for view in views}
    assert len({move.session for move in moves}) == len(moves)
    for move in moves:
        source, destination = by_key[move.source], by_key[move.destination]
        assert destination.may_decode and source.alive and source is not destination
        (one,) = [one for one in source.sequences if one.session == move.session]
        assert one.movable
        assert (move.reason is MoveReason.DRAIN) == source.draining
        assert (move.reason is MoveReason.ROLE_CHANGE) == (
            not source.draining and not source.load.decode_slots
        )


@settings(max_examples=200)
@given(fleets(), COSTS, st.integers(1, 3), st.integers(1, 3))
def test_no_more_is_under_way_than_may_be(views, price, per_instance, per_link):
    cfg = MigrationConfig(most_per_instance=per_instance, most_per_link=per_link)
    memory, moves = Memory(), []
    for tick in range(3):  # nothing comes of any: all of them stay under way
        more, memory = plan(views, cfg, tick / 10, price, memory)
        moves += more
    moves = [move for move in moves if move.reason is not MoveReason.START]  # that copies nothing
    ends = Counter(key for move in moves for key in (move.source, move.destination))
    links = Counter((move.source, move.destination) for move in moves)
    assert max(ends.values(), default=0) <= per_instance
    assert max(links.values(), default=0) <= per_link


@settings(max_examples=200)
@given(fleets(), CFGS, COSTS)
def test_no_move_for_the_better_leaves_anybody_worse_off_than_the_worst_was(views, cfg, price):
    moves, _ = plan(views, cfg, price=price)
    if all(move.reason in BETTER for move in moves):
        assert worst(moved(views, moves)) >= worst(views)
    for move in moves:
        (source,) = [view for view in views if view.key == move.source]
        views = moved(views, [move])
        if move.reason in BETTER:
            ends = [freeness(view) for view in views if view.key in (move.source, move.destination)]
            assert min(ends) > freeness(source)


@settings(max_examples=100)
@given(fleets(), CFGS, COSTS)
def test_views_that_stand_still_come_to_rest(views, cfg, price):
    """Whatever was moved before is forgotten in between: the plan alone must not want it back."""
    most = 2 * sum(len(view.sequences) for view in views) + 1
    for _ in range(most):
        moves, _ = plan(views, cfg, price=price)
        views = moved(views, moves)
    assert not plan(views, cfg, price=price)[0]


@settings(max_examples=100)
@given(fleets(), COSTS)
def test_what_drains_is_emptied_as_far_as_there_is_room(views, price):
    while moves := plan(views, price=price)[0]:
        views = moved(views, moves)
    room = any(view.may_decode and view.load.free_slots and view.load.free_blocks >= 101 for view in views)
    for view in views:
        if view.alive and (view.draining or not view.load.decode_slots) and room:
            assert not [one for one in view.sequences if one.movable]


@given(fleets(), st.randoms())
def test_the_order_of_the_views_does_not_matter(views, random):
    shuffled = random.sample(views, len(views))
    assert plan(views) == plan(shuffled)


def test_a_full_instance_is_relieved_by_the_freest():
    full = instance("a", running("a", 200, 100, 10))
    views = [full, instance("b", running("b", 100, 50, 4)), instance("c")]
    moves, memory = plan(views)
    assert [move.destination for move in moves] == [("c", 1), ("b", 1)]
    assert {move.reason for move in moves} == {MoveReason.BALANCE}
    assert memory.relieved == {full.key}


def test_one_that_waits_is_made_room_for_though_no_instance_is_full():
    views = [instance("a", running("a", 150, 40, 10), head=100), instance("b", running("b", 100, 40, 4))]
    moves, _ = plan(views)
    assert moves and {move.reason for move in moves} == {MoveReason.MAKE_ROOM}


def waiting(name, tokens, remaining=40, **more):
    return SequenceView(session=name, tokens=tokens, remaining=remaining, waits=True, **more)


def blocked(name, *queue, **more):
    """An instance whose memory is nearly full, with those that wait there."""
    full = instance(name, [*running(name, 240, 20, 12), *queue], head=blocks_for(queue[0].tokens + 60, 16))
    return with_load(full, waiting=len(queue), queued_tokens=sum(one.tokens for one in queue), **more)


def test_those_that_wait_for_memory_go_where_there_is_some():
    queue = [waiting("first", 800), waiting("second", 100), waiting("third", 100)]
    moves, memory = plan([blocked("a", *queue), instance("b", running("b", 100, 50, 8))], MigrationConfig())
    starts = [move for move in moves if move.reason is MoveReason.START]
    assert [(move.session, move.destination) for move in starts] == [
        (session, ("b", 1)) for session in ("first", "second", "third")
    ]
    assert not [
        move for move in plan([blocked("a", *queue), instance("b")], memory=memory)[0] if move in starts
    ]


def test_who_has_room_where_it_waits_and_who_may_not_move_stays():
    for one in (waiting("one", 20), waiting("one", 800, movable=False)):
        moves, _ = plan([blocked("a", one), instance("b")])
        assert "one" not in {move.session for move in moves}


def test_nobody_is_begun_where_others_wait_or_memory_will_not_last():
    for there in (
        blocked("b", waiting("other", 900)),
        instance("b", running("b", 40, 400, 8)),
        with_load(instance("b"), prefill_tokens=0),
    ):
        moves, _ = plan([blocked("a", waiting("one", 800)), there])
        assert MoveReason.START not in {move.reason for move in moves}


def test_room_is_made_out_of_memory_that_is_scattered_even_where_others_wait_too():
    """None has room for any of the two, but one of them has when what runs beside it goes to the other."""
    views = [
        instance("a", [*running("a", 600, 30, 2), waiting("x", 2900)], head=184),
        instance("b", [*running("b", 130, 30, 10), waiting("y", 1800)], head=115),
    ]
    assert all(view.load.room_blocks < view.load.blocks_of(view.sequences[-1].tokens) for view in views)
    moves, _ = plan(views, MigrationConfig())
    assert {move.session for move in moves if move.destination == ("b", 1)} == {"a0", "a1"}
    assert {move.reason for move in moves} == {MoveReason.MAKE_ROOM}
    there = moved(views, moves)[0].load
    assert there.room_blocks >= there.blocks_of(2900)


def test_no_room_is_made_where_all_together_have_too_little():
    views = [instance(name, running(name, 300, 100, 8)) for name in "bc"]
    moves, _ = plan([blocked("a", waiting("one", 2000)), *views])
    assert MoveReason.MAKE_ROOM not in {move.reason for move in moves}


def test_one_whose_memory_runs_out_is_relieved_though_nobody_is_free_for_long():
    """What is predicted lets nobody take more by the thresholds; what is free now does."""
    short = instance("a", running("a", 240, 60, 12))
    views = [short, instance("b", running("b", 100, 100, 13))]
    assert freeness(views[1]) < CFG.high_steps
    assert plan(views)[0] and not plan(views, price=cost(copy_bytes_per_s=1e3))[0]


def test_one_of_high_priority_gets_its_headroom_and_stays():
    high = SequenceView(session="high", tokens=100, remaining=100, priority=Priority.HIGH)
    views = [instance("a", [high, *running("a", 200, 80, 9)]), instance("b")]
    moves, _ = plan(views)
    assert moves and {move.reason for move in moves} == {MoveReason.HEADROOM}
    assert "high" not in {move.session for move in moves}
    normal = replace(high, priority=Priority.NORMAL)
    assert not plan([instance("a", [normal, *running("a", 200, 80, 9)]), instance("b")])[0]


def test_relief_goes_on_until_there_is_enough_and_not_beyond():
    """Hysteresis: between `low_steps` and `enough_steps` it depends on where the instance comes from."""
    between = instance("a", running("a", 200, 20, 11))
    assert CFG.low_steps < freeness(between) < CFG.enough_steps
    views = [between, instance("b")]
    assert plan(views)[0] == []
    assert plan(views, memory=Memory(relieved=frozenset({between.key})))[0]


def test_nobody_takes_what_would_make_it_ask_for_relief():
    views = [instance("a", running("a", 200, 30, 11)), instance("b", running("b", 200, 30, 10))]
    assert freeness(views[0]) < TIGHT.low_steps and freeness(views[1]) > TIGHT.high_steps
    assert not plan(views, TIGHT)[0]
    assert plan([views[0], instance("b")], TIGHT)[0]


def test_a_move_must_pay_for_itself():
    views = [instance("a", running("a", 300, 20, 10)), instance("b")]
    views = [with_load(view, peak_blocks=TOTAL - 5) if view.name == "a" else view for view in views]
    assert plan(views, price=cost())[0]
    assert not plan(views, price=cost(copy_bytes_per_s=1e4))[0]  # 30 s of copying for 20 tokens


def test_the_cheapest_to_move_for_what_it_frees_goes_first():
    short, long = running("s", 50, 250, 1), running("l", 250, 50, 9)
    moves, _ = plan([instance("a", [*long, *short]), instance("b")], price=cost())
    assert moves[0].session == "s0"


def test_what_was_moved_rests_and_what_failed_is_tried_again_after_a_rest():
    views = [instance("a", running("a", 200, 100, 10)), instance("b")]
    (move, *_), memory = plan(views)
    assert not plan(views, now=0.1, memory=memory)[0], "the link is taken"
    retried, after = plan(views, now=0.1, memory=failed(memory, move.session))
    assert retried and move.session not in {again.session for again in retried}
    later, _ = plan(views, now=CFG.move_s + 0.1, memory=memory)
    assert move.session in {again.session for again in later}


def test_memory_does_not_outlast_the_moves():
    views = [instance("a", running("a", 200, 100, 10)), instance("b")]
    _, memory = plan(views)
    _, memory = plan([instance("a"), instance("b")], now=1.0, memory=memory)
    _, memory = plan([instance("a"), instance("b")], now=100.0, memory=memory)
    assert memory == Memory()


def test_a_drain_takes_sequences_that_came_a_moment_ago_too():
    views = [instance("a", running("a", 200, 100, 10)), instance("b"), instance("c")]
    moves, memory = plan(views)
    views = [replace(view, draining=view.name == "b") for view in moved(views, moves)]
    again, _ = plan(views, now=0.1, memory=memory)
    assert {move.session for move in moves if move.destination == ("b", 1)} <= {
        move.session for move in again if move.reason is MoveReason.DRAIN
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"low_steps": 100.0, "enough_steps": 50.0},
        {"enough_steps": 5.0},
        {"most_per_link": 0},
        {"most_per_instance": 0},
        {"least_remaining": 0},
        {"rest_s": -1.0},
        {"move_s": math.nan},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MigrationConfig(**wrong)
