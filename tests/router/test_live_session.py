"""Laws of one live session, without sockets: bounds hold, and whatever ends it is told to all who heard of it."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from toy_instance import FAST

from penstock.handover.config import HandoverConfig
from penstock.handover.values import (
    FOREVER,
    Ask,
    End,
    Epoch,
    Incarnation,
    Move,
    News,
    Resume,
    Revoke,
    SamplingParams,
    Seen,
    Start,
    TokenRecord,
    Unmoved,
)
from penstock.policy.dispatch import Assignment, NoInstance
from penstock.policy.state import InstanceView, RequestShape
from penstock.router.config import RouterConfig
from penstock.router.fleet import Mode, MoveWanted
from penstock.router.refusal import Refused
from penstock.router.session import MOST_LOSSES, LiveSession
from penstock.router.wire import Call

A, B, C = (Incarnation(name, 1) for name in "abc")
VIEWS = {name: InstanceView(name=name, life=1, address=f"{name}:1") for name in "abc"}


class Desk:
    """Stands for the router: a clock, answers in advance, and all that was told."""

    def __init__(self):
        self.time = 0.0
        self.told = []
        self.results = []
        self.served = []
        self.lags = []
        self.noted = []
        self.assignment: Assignment | NoInstance = Assignment(VIEWS["a"], VIEWS["b"])
        self.destination: InstanceView | NoInstance = VIEWS["c"]

    def now(self):
        return self.time

    def lived(self):
        return self.time

    def tell(self, instance, message):
        self.told.append((instance, message))

    def shape(self, call, emitted):
        return RequestShape(prompt_tokens=len(call.prompt) + len(emitted))

    def dispatch(self, request, wanted, in_turn):
        return self.assignment

    def redirect(self, request, avoid, wanted):
        return self.destination

    def silence_s(self, owner):
        return FAST.silence_s

    def first_token(self, call, ttft_s, foreseen_s):
        self.served.append(("ttft_s", ttft_s))

    def prefilled(self, expected_s, took_s):
        self.lags.append((expected_s, took_s))

    def completed(self, call, emitted, owner, tpot_s):
        self.served.append(("tpot_s", tpot_s))

    def moved(self, result):
        self.results.append(result)

    def note(self, session, what, **figures):
        self.noted.append((what, figures))

    def of(self, kind):
        return [(instance, message) for instance, message in self.told if isinstance(message, kind)]


def session(desk, max_tokens=100, handover: HandoverConfig = FAST, **config) -> LiveSession:
    call = Call("r", 1, (1, 2, 3), SamplingParams(max_tokens=max_tokens))
    return LiveSession(call, desk, RouterConfig(**config), handover)


def news(n, first, *ids, end=None):
    records = [TokenRecord(id) for id in ids]
    if end:
        records[-1] = TokenRecord(ids[-1], end)
    return News("r#0#0", Epoch(1, n), first, tuple(records))


def read(live):
    """All that waits for the client, and how it ended."""

    async def drain():
        return [delta async for delta in live.deltas()]

    return asyncio.run(drain())


def started(**more):
    desk = Desk()
    live = session(desk, **more)
    live.start()
    live.turn()
    return desk, live


def test_a_session_waits_for_its_turn_and_nobody_is_silent_meanwhile():
    desk = Desk()
    found, desk.assignment = desk.assignment, NoInstance("all have enough", busy=True)
    live = session(desk)
    live.start()
    desk.time += 10 * FAST.silence_s
    live.tick()
    assert live.turn() == desk.assignment and not desk.told and not live.recoveries
    desk.assignment = found
    assert live.turn() is None and desk.of(Start)
    desk.time += 0.9 * FAST.silence_s
    live.tick()
    assert not live.recoveries


def test_what_was_promised_is_measured_from_the_arrival_on():
    desk = Desk()
    live = session(desk)
    live.start()
    desk.time = 1.0
    live.turn()
    desk.time = 2.0
    live.heard(A, news(1, 0, 5))
    assert live.uncounted() == 1 and live.uncounted() == 0
    desk.time = 5.0
    live.heard(A, news(1, 1, 6, 7, 8, end=End.STOP))
    assert desk.served == [("ttft_s", 2.0), ("tpot_s", 1.0)]
    assert desk.lags == [(0.0, 1.0)], "from its turn on"
    assert live.uncounted() == 3


def test_a_start_names_both_epochs():
    desk, _ = started()
    ((instance, start),) = desk.of(Start)
    assert instance == A and start.destination.incarnation == B
    assert start.epoch == (1, 1) and start.next_epoch == (1, 2)


def test_tokens_are_read_once_and_in_order_however_often_they_are_told():
    desk, live = started()
    for message in (
        news(1, 0, 5),
        news(1, 0, 5, 6),
        news(1, 1, 6),
        news(1, 4, 9),
        news(1, 2, 7, 8, end=End.STOP),
    ):
        live.heard(A, message)
    deltas = read(live)
    assert [id for delta in deltas for id in delta.token_ids] == [5, 6, 7, 8]
    assert [delta.first_index for delta in deltas] == [0, 1, 2]
    assert live.end is End.STOP and deltas[-1].end is End.STOP
    assert [seen.next_index for _, seen in desk.of(Seen)] == [1, 2, 2, 2, 4]


def test_a_client_that_does_not_read_is_cut_off():
    desk, live = started(session_queue=3)
    for index in range(5):
        live.heard(A, news(1, index, index))
    assert live.closed
    with pytest.raises(Refused) as refused:
        read(live)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {instance for instance, revoke in desk.of(Revoke) if revoke.bound == (1, FOREVER)} == {A, B}


def test_cancel_revokes_everywhere_and_is_final():
    desk, live = started()
    live.cancel()
    live.cancel()
    assert desk.of(Revoke) == [
        (A, Revoke("r#0#0", Epoch(1, FOREVER))),
        (B, Revoke("r#0#0", Epoch(1, FOREVER))),
    ]
    desk.told.clear()
    live.heard(A, news(1, 0, 5))
    assert desk.told == [(A, Revoke("r#0#0", Epoch(1, FOREVER)))]
    assert read(live) == []


def test_silence_recovers_with_all_tokens_so_far():
    desk, live = started()
    live.heard(A, news(1, 0, 5, 6))
    desk.time += FAST.silence_s + 0.1
    live.tick()
    _, start = desk.of(Start)[-1]
    assert start.context.emitted == (5, 6) and start.epoch > (1, 2) and live.recoveries == 1


def test_words_of_an_older_epoch_do_not_count_as_life():
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    desk.time += FAST.silence_s / 2
    live.heard(A, news(1, 0, 5))
    desk.time += FAST.silence_s / 2 + 0.1
    live.tick()
    assert live.recoveries == 1


def test_recoveries_are_bounded():
    desk, live = started(max_recoveries=3)
    for _ in range(10):
        desk.time += FAST.silence_s + 0.1
        live.tick()
    assert live.closed and len(desk.of(Start)) == 4
    with pytest.raises(Refused) as refused:
        read(live)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE and refused.value.final


def test_a_prompt_that_fits_no_pool_is_refused_at_once():
    desk = Desk()
    desk.assignment = NoInstance("too long", ever=False)
    live = session(desk)
    live.start()
    assert live.turn() is None and live.closed
    with pytest.raises(Refused) as refused:
        read(live)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_instance_is_waited_for_and_then_given_up():
    desk, live = started(dispatch_wait_s=1.0)
    found, desk.assignment = desk.assignment, NoInstance("none for now")
    live.lost(A)
    desk.time += 0.9
    live.tick()
    assert not live.closed and len(desk.of(Start)) == 1
    desk.assignment = found
    live.tick()
    assert len(desk.of(Start)) == 2
    desk.assignment = NoInstance("none any more")
    live.lost(A)
    desk.time += 1.1
    live.tick()
    assert live.closed


def test_an_unmoved_first_handover_finds_another_destination_or_tries_again():
    desk, live = started()
    live.heard(A, news(1, 0, 5))
    live.heard(A, Unmoved("r#0#0", Epoch(1, 1), Epoch(1, 2), "no room"))
    (_, move) = desk.of(Move)[-1]
    assert move.destination.incarnation == C and move.next_epoch == (1, 3)
    desk.destination = NoInstance("no other")
    live.heard(A, Unmoved("r#0#0", Epoch(1, 1), Epoch(1, 3), "no room"))
    assert len(desk.of(Move)) == 1
    desk.destination = VIEWS["b"]
    desk.time += 0.2
    live.heard(A, news(1, 1))
    live.tick()
    assert desk.of(Move)[-1][1].next_epoch == (1, 4)


@pytest.mark.parametrize("owner_decodes", [True, False])
def test_without_anybody_to_decode_it_a_session_is_given_up_in_time(owner_decodes):
    desk, live = started(dispatch_wait_s=1.0)
    live.heard(A, news(1, 0, 5))
    desk.destination = NoInstance("no other instance decodes")
    live.heard(A, Unmoved("r#0#0", Epoch(1, 1), Epoch(1, 2), "no room"))
    for index in range(1, 20):
        desk.time += 0.2
        live.heard(A, news(1, index, 5) if owner_decodes else news(1, 1))
        live.tick()
    assert live.closed is not owner_decodes
    if live.closed:
        with pytest.raises(Refused) as refused:
            read(live)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE and "decodes" in refused.value.message


def test_a_move_that_goes_unanswered_is_told_again():
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    live.want_move(MoveWanted(1, live.key, "c", Mode.LIVE, "test"))
    for _ in range(8):
        desk.time += 0.2
        live.heard(B, news(2, 1))
        live.tick()
    moves = [move for _, move in desk.of(Move)]
    assert len(moves) > 2 and len(set(moves)) == 1


def test_a_move_is_done_with_the_first_token_of_the_new_owner():
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    live.want_move(MoveWanted(4, live.key, "c", Mode.BLOCKING, "test"))
    desk.time += 0.5
    live.heard(C, news(3, 1))
    assert not desk.results
    live.heard(C, news(3, 1, 6))
    (result,) = desk.results
    assert (result.ask, result.done, result.source, result.seconds) == (4, True, "b", 0.5)
    assert live.handovers == 2


def test_a_move_that_the_end_overtakes_is_answered():
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    live.want_move(MoveWanted(4, live.key, "c", Mode.LIVE, "test"))
    live.heard(B, news(2, 1, 6, end=End.LENGTH))
    (result,) = desk.results
    assert not result.done and result.reason
    live.want_move(MoveWanted(5, live.key, "c", Mode.LIVE, "test"))
    assert desk.results[1].reason == "the request ended"


def test_a_move_that_waits_too_long_for_a_handover_is_answered():
    desk, live = started(move_wait_s=1.0)
    live.want_move(MoveWanted(4, live.key, "c", Mode.LIVE, "test"))
    for _ in range(8):
        desk.time += 0.2
        live.heard(A, news(1, 0))
        live.tick()
    (result,) = desk.results
    assert not result.done and "under way" in result.reason


def recomputing(to: str = "c"):
    """A session that runs on b and is to be prefilled again on `to`."""
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    desk.destination = VIEWS[to]
    return desk, live, MoveWanted(6, live.key, to, Mode.RECOMPUTE, "test")


def test_a_recompute_is_done_with_the_first_token_from_where_it_was_wanted():
    desk, live, wanted = recomputing()
    desk.assignment = Assignment(VIEWS["c"], None)
    live.want_move(wanted)
    assert not desk.results
    live.heard(C, news(live.machine.n, 1, 6))
    assert [(result.ask, result.done) for result in desk.results] == [(6, True)]


def test_the_time_that_it_ran_is_no_part_of_what_a_dispatch_waited():
    desk, live, wanted = recomputing()
    desk.assignment = NoInstance("none for now")
    desk.time += 10.0
    live.want_move(wanted)
    desk.assignment = Assignment(VIEWS["c"], None)
    desk.time += 0.5
    live.tick()
    assert [figures["waited_s"] for what, figures in desk.noted if what == "dispatched"] == [0.0, 0.5]


def test_one_that_waits_is_begun_elsewhere_and_one_that_has_begun_is_not():
    desk = Desk()
    desk.assignment = Assignment(VIEWS["a"], None)
    live = session(desk)
    live.start()
    live.turn()
    desk.destination, desk.assignment = VIEWS["c"], Assignment(VIEWS["c"], None)
    assert live.waits and live.may_restart and not live.may_move
    live.want_move(MoveWanted(6, live.key, "c", Mode.UNBEGUN, "start"))
    assert not desk.results and live.owner == "c" and live.recoveries == 0
    live.heard(C, news(live.machine.n, 0, 1))
    assert [(result.ask, result.done) for result in desk.results] == [(6, True)]
    assert live.may_move and not live.waits and not live.may_restart
    live.want_move(MoveWanted(7, live.key, "b", Mode.UNBEGUN, "start"))
    assert not desk.results[-1].done and "begun" in desk.results[-1].reason and live.owner == "c"


def test_a_recompute_that_is_dispatched_elsewhere_is_answered_at_once():
    desk, live, wanted = recomputing()
    desk.assignment = Assignment(VIEWS["a"], VIEWS["b"])
    live.want_move(wanted)
    (result,) = desk.results
    assert not result.done and "for b" in result.reason and not live.closed


def test_a_recompute_whose_instance_went_away_is_answered_when_the_session_goes_elsewhere():
    desk, live, wanted = recomputing()
    desk.assignment = NoInstance("no instance named c decodes")
    live.want_move(wanted)
    assert not desk.results and not live.closed
    desk.assignment = Assignment(VIEWS["a"], VIEWS["b"])
    live.tick()
    (result,) = desk.results
    assert not result.done and "for b" in result.reason
    live.want_move(MoveWanted(7, live.key, "c", Mode.LIVE, "test"))
    assert len(desk.results) == 1, "the next move is taken"


def test_a_move_whose_destination_dies_before_its_first_token_is_answered():
    desk, live = started()
    live.heard(B, news(2, 0, 5))
    live.want_move(MoveWanted(4, live.key, "c", Mode.LIVE, "test"))
    live.heard(C, news(3, 1))
    assert not desk.results, "it owns the session, and has made nothing yet"
    live.lost(C)
    (result,) = desk.results
    assert not result.done and live.recoveries == 1


def test_an_ask_is_settled_for_the_source():
    desk, live = started()
    live.heard(A, Ask("r#0#0", Epoch(1, 1)))
    assert desk.of(Resume) == [(A, Resume("r#0#0", Epoch(1, 1), Epoch(1, 3)))]


def test_a_defect_ends_the_session_and_frees_it_everywhere():
    desk, live = started()
    live.abandon(Refused(grpc.StatusCode.INTERNAL, "defect"))
    assert {instance for instance, _ in desk.of(Revoke)} == {A, B}
    with pytest.raises(Refused):
        read(live)


def test_every_turn_of_a_requests_life_is_noted_with_its_figures():
    desk, live = started()
    live.heard(A, news(1, 0, 5))
    live.want_move(MoveWanted(4, live.key, "c", Mode.LIVE, "balance"))
    desk.time += 0.5
    live.heard(B, news(2, 1, 6))
    live.lost(B)
    again = live.machine.epoch.n
    live.heard(A, news(again, 2, 7))
    live.heard(A, news(again, 3, 8, end=End.LENGTH))
    told = [what for what, _ in desk.noted]
    assert told[:2] == ["received", "dispatched"] and told[-1] == "ended"
    assert told.count("first_token") == 1
    by_name = dict(desk.noted)
    assert by_name["dispatched"]["decode"] == "b"
    assert by_name["continued"]["gap_s"] == 0.0 and by_name["recovering"]["tokens"] == 5
    assert by_name["ended"] == {"tokens": 4, "seconds": 0.5, "handovers": live.handovers, "recoveries": 1}
    assert all(
        isinstance(value, (int, float, str)) for _, figures in desk.noted for value in figures.values()
    )


def test_what_an_instance_can_never_begin_ends_at_once_with_its_reason():
    desk, live = started()
    live.heard(B, replace(news(0, 0), refused="of an epoch before"))
    assert not live.closed, "who does not own it has no say"
    live.heard(A, replace(news(1, 0), refused="the prompt is empty"))
    assert live.closed and live.recoveries == 0
    with pytest.raises(Refused, match="the prompt is empty") as refused:
        read(live)
    assert refused.value.final


def test_a_request_that_ends_one_instance_after_the_other_is_given_up():
    desk, live = started()
    for _ in range(MOST_LOSSES - 1):
        live.lost(A)
    assert live.recoveries == MOST_LOSSES - 1 and not live.closed
    live.lost(A)
    with pytest.raises(Refused, match="in a row"):
        read(live)
    assert len(desk.of(Start)) == MOST_LOSSES


def test_a_request_that_goes_on_between_losses_is_not_to_blame():
    desk, live = started()
    for number in range(2 * MOST_LOSSES):
        live.heard(A, replace(news(live.machine.n, number, 5)))
        live.lost(B)
        live.lost(A)
    assert not live.closed and live.recoveries == 2 * MOST_LOSSES


@pytest.mark.parametrize("made", [(), (7, 8)])
def test_an_output_that_went_astray_of_its_grammar_ends_in_an_error(made):
    desk, live = started()
    live.heard(A, news(1, 0, 5, 6))
    live.heard(A, news(1, 2, *made, 9, end=End.ASTRAY))
    got = []

    async def follow():
        async for delta in live.deltas():
            got.extend(delta.token_ids)

    with pytest.raises(Refused, match="too complex: after [24] tokens") as refused:
        asyncio.run(follow())
    assert got == [5, 6, *made]
    assert (refused.value.code, refused.value.field) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.structured",
    )
    assert live.closed and not any(name == "tpot_s" for name, _ in desk.served)
