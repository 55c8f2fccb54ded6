"""Single answers of a seat that the exploration's world has no occasion for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from penstock.handover.config import HandoverConfig
from penstock.handover.effects import (
    Beat,
    Clock,
    Drop,
    FromPeer,
    FromRouter,
    InstanceEffect,
    InstanceEvent,
    Launched,
    Lease,
    Leased,
    Pause,
    Reserving,
    Stepped,
    Timeout,
    ToPeer,
    ToRouter,
    Write,
    Written,
)
from penstock.handover.holding import Holding, Progress
from penstock.handover.house import House
from penstock.handover.seat import Seat
from penstock.handover.values import (
    FOREVER,
    Address,
    Ask,
    Context,
    End,
    Epoch,
    Grant,
    Incarnation,
    Layout,
    LeaseKey,
    Move,
    News,
    Refuse,
    Reserve,
    Resume,
    Revoke,
    Seen,
    Start,
    Stop,
    TokenRecord,
    Unmoved,
    Wait,
)

A, B = Incarnation("a", 0), Incarnation("b", 0)
LAYOUT = Layout(2, 2, 8, "float32", 16)
CONFIG = HandoverConfig(final_blocks=1, stage_blocks=1)
AT_A, AT_B = House(A, "model", LAYOUT, CONFIG), House(B, "model", LAYOUT, CONFIG)


def epoch(n: int, attempt: int = 0) -> Epoch:
    return Epoch(attempt, n)


def key(n: int) -> LeaseKey:
    return LeaseKey("s", epoch(n))


def fed(seat: Seat, house: House, *events: InstanceEvent) -> tuple[Seat, list[InstanceEffect]]:
    """The seat after these events, and the effects of the last."""
    effects: list[InstanceEffect] = []
    for event in events:
        seat, effects = seat.on(event, house)
    return seat, effects


def told(effects: list[InstanceEffect]) -> list:
    """The messages among the effects."""
    return [effect.message for effect in effects if isinstance(effect, ToPeer | ToRouter)]


def start(n: int = 1) -> FromRouter:
    return FromRouter("r", Start("s", epoch(n), Context((1, 2))))


def stepped(token: int, blocks: int = 1, full: int = 0) -> Stepped:
    return Stepped((TokenRecord(token),), full, blocks, 16 * blocks - 1, True)


def move(n: int, to: Incarnation = B) -> FromRouter:
    return FromRouter("r", Move("s", epoch(1), epoch(n), Address(to, "")))


def reserve(n: int = 2, **changed) -> FromPeer:
    asked = Reserve(key(n), A, B, "model", LAYOUT, 1, Context((1, 2)), "r", False)
    return FromPeer(A, replace(asked, **changed))


def running() -> Seat:
    return fed(Seat("s"), AT_A, start(), Launched(), stepped(7))[0]


def test_a_destination_that_drains_refuses_at_once_and_keeps_what_it_granted() -> None:
    drains = replace(AT_B, draining=True)
    seat, effects = fed(Seat("s"), drains, reserve())
    assert told(effects) == [Refuse(key(2), A, B, "it is being emptied")] and seat.empty
    seat, effects = fed(Seat("s"), AT_B, reserve(), Leased(key(2), False, 0))
    seat, effects = fed(seat, drains, Beat())
    assert told(effects) == [Refuse(key(2), A, B, "it is being emptied")] and seat.empty
    seat, effects = fed(Seat("s"), AT_B, reserve(), Leased(key(2), True, 0))
    seat, effects = fed(seat, drains, Beat())
    assert told(effects) == [] and not seat.empty


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"fingerprint": "other"}, "another model"),
        ({"layout": replace(LAYOUT, block_size=8)}, "layout differs"),
    ],
)
def test_a_destination_refuses_what_differs_from_its_own(changed: dict, reason: str) -> None:
    seat, effects = fed(Seat("s"), AT_B, reserve(**changed))
    assert seat == Seat("s")
    [refuse] = told(effects)
    assert isinstance(refuse, Refuse) and reason in refuse.reason


def test_a_reservation_for_another_life_is_ignored() -> None:
    assert fed(Seat("s"), AT_B, reserve(destination=Incarnation("b", 1))) == (Seat("s"), [])


def test_a_reservation_told_twice_leases_once() -> None:
    seat, effects = fed(Seat("s"), AT_B, reserve())
    assert any(isinstance(effect, Lease) for effect in effects)
    assert fed(seat, AT_B, reserve()) == (seat, [])


def test_a_void_epoch_is_refused_aloud() -> None:
    revoke = FromRouter("r", Revoke("s", epoch(FOREVER)))
    _, effects = fed(Seat("s"), AT_B, revoke, reserve())
    assert [type(message) for message in told(effects)] == [Refuse]


def test_no_room_is_said_and_the_reservation_stays_open() -> None:
    seat, effects = fed(Seat("s"), AT_B, reserve(), Leased(key(2), False))
    assert [type(message) for message in told(effects)] == [Wait]
    _, effects = fed(seat, AT_B, Leased(key(2), True))
    assert [type(message) for message in told(effects)] == [Grant]


def test_a_move_to_where_it_runs_is_answered_and_answered_again() -> None:
    seat, effects = fed(running(), AT_A, move(2, to=A))
    [unmoved] = told(effects)
    assert isinstance(unmoved, Unmoved) and unmoved.next_epoch == epoch(2) and "already" in unmoved.reason
    assert fed(seat, AT_A, move(2, to=A)) == (seat, effects)


def test_a_second_move_waits_for_the_first() -> None:
    _, effects = fed(running(), AT_A, move(2), move(3))
    [unmoved] = told(effects)
    assert isinstance(unmoved, Unmoved) and unmoved.next_epoch == epoch(3) and "under way" in unmoved.reason


def test_a_grant_that_nobody_waits_for_is_stopped() -> None:
    grant = FromPeer(B, Grant(key(2), A, B, 3.0))
    _, effects = fed(running(), AT_A, grant)
    assert effects == [ToPeer(B, Stop(key(2), A, B))]


def test_a_refusal_is_told_to_the_router_and_the_sequence_runs_on() -> None:
    seat, effects = fed(running(), AT_A, move(2), FromPeer(B, Refuse(key(2), A, B, "full")))
    assert told(effects) == [Unmoved("s", epoch(1), epoch(2), "full")]
    assert seat.source is None and seat.holding is not None


def test_what_the_router_has_seen_is_not_kept() -> None:
    seat, _ = fed(running(), AT_A, Launched(), stepped(8), FromRouter("r", Seen("s", 0, 1)))
    assert seat.holding is not None
    assert (seat.holding.first, seat.holding.records) == (1, (TokenRecord(8),))


def test_what_another_attempt_has_seen_is_not_believed() -> None:
    seat = running()
    assert fed(seat, AT_A, FromRouter("r", Seen("s", 1, 1))) == (seat, [])


def test_the_first_word_of_a_sequence_comes_before_its_first_step() -> None:
    _, effects = fed(Seat("s"), AT_A, start())
    assert effects[-1] == ToRouter("r", News("s", epoch(1), 0, waits=True))


def test_a_copy_that_was_stopped_still_keeps_the_blocks_of_a_sequence_that_was_resumed_since() -> None:
    """The first handover's write hangs; a second one commits, and the router has it resumed under a new epoch."""
    seat = fed(Seat("s"), AT_A, start(), Launched(), stepped(7, blocks=3, full=2), move(2))[0]
    seat, effects = fed(seat, AT_A, FromPeer(B, Grant(key(2), A, B, 3.0)))
    assert any(isinstance(effect, Write) for effect in effects)
    seat = fed(seat, AT_A, FromPeer(B, Stop(key(2), A, B)))[0]
    seat, effects = fed(seat, AT_A, move(3))
    assert any(isinstance(effect, Reserving) for effect in effects)
    seat = fed(seat, AT_A, FromPeer(B, Grant(key(3), A, B, 3.0, have=2)), Written(key(3), True))[0]
    seat, effects = fed(seat, AT_A, Timeout(Clock.SETTLE, key(3)))
    assert ToRouter("r", Ask("s", epoch(1))) in effects
    seat = fed(seat, AT_A, FromRouter("r", Resume("s", epoch(1), epoch(4))))[0]
    seat, effects = fed(seat, AT_A, FromRouter("r", Revoke("s", epoch(4))))
    assert not any(isinstance(effect, Drop) for effect in effects)
    _, effects = fed(seat, AT_A, Written(key(2), True))
    assert Drop(epoch(4)) in effects


def drawn_seat(draw: random.Random) -> Seat:
    """Mostly one that holds a sequence that goes on, and nothing else."""
    made, first, own = draw.randrange(4), draw.randrange(3), epoch(draw.randrange(3))
    records = tuple(TokenRecord(number) for number in range(made))
    now = draw.choice((None, Progress(1, 2, 20, True, 0)))
    seen, told = draw.randrange(first + made + 1), first + draw.randrange(made + 1)
    holding = Holding(own, "r", first, seen, told, records, draw.random() < 0.1, now, begun=True)
    unmoved = draw.choice((None, Unmoved("s", own, epoch(7), "why")))
    return Seat("s", own, holding, launched=(own,) * draw.randrange(3), unmoved=unmoved)


def test_a_step_ends_alike_by_the_shorter_way_and_by_the_long_one() -> None:
    draw, alike = random.Random(1), 0
    for _ in range(2000):
        seat = drawn_seat(draw)
        records = tuple(TokenRecord(50 + number) for number in range(draw.randrange(3)))
        now = Progress(*(draw.randrange(9) for _ in range(3)), draw.random() < 0.5, draw.randrange(2))
        step = Stepped(records, *now)
        if seat.plain:
            untold = () if seat.launched else (Launched(),)
            assert seat.ran(step) == fed(seat, AT_A, *untold, step)
            alike += 1
    assert alike > 1000


def test_the_step_behind_the_last_token_says_nothing_and_is_waited_for() -> None:
    seat, _ = fed(running(), AT_A, Launched(), Launched())
    last = Stepped((TokenRecord(8, End.STOP),), 1, 1, 5, True)
    ended, effects = fed(seat, AT_A, last)
    assert [type(effect) for effect in effects] == [ToRouter]
    for over in (FromRouter("r", Seen("s", 0, 2)), FromRouter("r", Revoke("s", epoch(1)))):
        closed, effects = fed(ended, AT_A, over)
        assert effects == [] and not closed.empty
        assert fed(closed, AT_A, stepped(9)) == (
            closed._replace(launched=(), doomed=frozenset()),
            [Drop(epoch(1))],
        )
    assert fed(ended, AT_A, stepped(9))[1] == [Drop(epoch(1))]


def test_the_last_blocks_leave_after_the_last_of_two_steps() -> None:
    seat, _ = fed(running(), AT_A, move(2), Launched(), Launched())
    seat, effects = fed(seat, AT_A, FromPeer(B, Grant(key(2), A, B, 3.0)))
    assert effects == [Pause(epoch(1))]
    seat, effects = fed(seat, AT_A, stepped(8))
    assert not any(isinstance(effect, Write) for effect in effects)
    _, effects = fed(seat, AT_A, stepped(9))
    [write] = [effect for effect in effects if isinstance(effect, Write)]
    assert write.stage.commit is not None and [record.id for record in write.stage.commit.records][-1] == 9


def test_a_seat_with_more_than_a_sequence_has_no_shorter_way() -> None:
    seat, _ = fed(running(), AT_A, Launched())
    assert seat.plain
    moving, _ = fed(seat, AT_A, move(2))
    doomed, _ = fed(seat, AT_A, FromRouter("r", Revoke("s", epoch(1))))
    ended, _ = fed(seat, AT_A, Stepped((TokenRecord(7, End.LENGTH),), 1, 1, 5, True))
    leased, _ = fed(Seat("s"), AT_B, reserve())
    assert not any(one.plain for one in (moving, doomed, ended, leased, Seat("s")))
