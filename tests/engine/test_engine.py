"""The engine among engines: whatever the network and the copies do, streams are right and nothing is left held."""

import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_model import VOCABULARY, answer
from toy_world import BLOCK, CONTEXT, ROUTER, Clock, Instance, World

from penstock.engine import engine as engine_module
from penstock.engine import moving
from penstock.engine.engine import Engine
from penstock.handover.config import HandoverConfig
from penstock.handover.effects import FromRouter, PeerLost
from penstock.handover.seat import Seat
from penstock.handover.values import (
    Context,
    Epoch,
    Incarnation,
    MoveMode,
    Revoke,
    SamplingParams,
    Seen,
    Start,
)
from penstock.policy.admission import RULES
from penstock.policy.batching import Budget

CONFIG = HandoverConfig(stage_blocks=4, final_blocks=2, grace_s=3.0, reserve_wait_s=0.5, lease_s=1.0)
SPLIT = {"prefill": Budget(16, 0), "decode-0": Budget(0, 8), "decode-1": Budget(0, 8)}
MIXED = {"a": Budget(12, 6), "b": Budget(12, 6)}


@dataclass(frozen=True)
class Case:
    seed: int
    roles: str
    in_place: bool
    loss: float
    blocks: int
    sessions: int
    moves: int
    cancels: int
    kills: int
    rule: str
    host_blocks: int
    window: int | None
    overlap: bool


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**32),
    roles=st.sampled_from(("split", "mixed")),
    in_place=st.booleans(),
    loss=st.sampled_from((0.0, 0.0, 0.05, 0.25)),
    blocks=st.sampled_from((12, 40, 64, 256)),
    sessions=st.integers(1, 6),
    moves=st.integers(0, 12),
    cancels=st.integers(0, 2),
    kills=st.sampled_from((0, 0, 1, 2)),
    rule=st.sampled_from(tuple(RULES)),
    host_blocks=st.sampled_from((0, 12, 200)),
    window=st.sampled_from((None, None, 1, 4, 10, 25)),
    overlap=st.booleans(),
)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


def context(draw: random.Random, prompt: int | None = None, **params) -> Context:
    length = prompt or draw.choice((1, BLOCK - 1, BLOCK, BLOCK + 1, 16, 17, 33, 64, CONTEXT - 1))
    params = {
        "seed": draw.randrange(1000),
        "max_tokens": draw.choice((1, 2, BLOCK, 20, 60, 1000)),
        "ignore_eos": draw.random() < 0.8,
        **params,
    }
    same = draw.choice((0, length // 2, length))
    known = random.Random(draw.randrange(2))
    tokens = [known.randrange(VOCABULARY) for _ in range(same)]
    tokens += [draw.randrange(VOCABULARY) for _ in range(length - same)]
    ttl_s = draw.choice((0.0, 0.0, 0.3))
    return Context(tuple(tokens), (), SamplingParams(**params), draw.choice("ab"), cache_ttl_s=ttl_s)


def world(case: Case, clock: Clock) -> World:
    roles = SPLIT if case.roles == "split" else MIXED
    blocks = case.blocks if case.window else max(case.blocks, CONTEXT // BLOCK)
    kept = case.rule, case.host_blocks, case.window, case.overlap
    return World(case.seed, roles, CONFIG, clock, blocks, case.in_place, case.loss, *kept)


def all_right(world: World) -> None:
    for key, stream in world.sessions.items():
        right = answer(stream.context, CONTEXT, world.window)
        if stream.cancelled:
            assert stream.ids == right[: len(stream.ids)], key
        else:
            assert stream.session.closed, f"{key} never ended: {len(stream.ids)} of {len(right)} tokens"
            assert stream.ids == right, key
    for instance in world.instances.values():
        assert instance.idle, f"{instance.me} holds {instance.pool.counts()}"


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_streams_are_right_and_nothing_is_held_whatever_happens(clock, case):
    now = world(case, clock)
    now.be_uneven()
    draw = random.Random(case.seed)
    plan = (
        ["start"] * case.sessions + ["move"] * case.moves + ["cancel"] * case.cancels + ["kill"] * case.kills
    )
    draw.shuffle(plan)
    plan.sort(key="start".__ne__) if case.seed % 2 else None
    for what in plan:
        open_keys = [key for key, stream in now.sessions.items() if not stream.session.closed]
        if what == "start":
            now.start(f"s{len(now.sessions)}", context(draw))
        elif what == "kill":
            now.kill(draw.choice(list(now.instances)))
        elif open_keys and what == "move":
            now.move(draw.choice(open_keys), draw.choice(tuple(MoveMode)))
        elif open_keys:
            now.cancel(draw.choice(open_keys))
        for _ in range(draw.choice((0, 5, 40, 200))):
            now.happen()
    for _ in range(20):
        now.settle(2.0)
        for key in now.sessions:
            now.nudge(key)
    all_right(now)


def honest(instance: Instance) -> bool:
    """The scheduler knows which sequences must not give their memory back; of steps in flight it knows first."""
    owned = [(key, seat) for key, seat in instance.engine._seats.items() if seat.holding is not None]
    known = [(instance.scheduler.get(key, seat.holding.epoch), seat) for key, seat in owned]
    ahead = {session for launch in instance.engine._flights for session in launch.places}
    return all(
        sequence is None or sequence.locked is (sequence.session in ahead or not seat.may_preempt)
        for sequence, seat in known
    )


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("host_blocks", [0, 30, 400])
@pytest.mark.parametrize("roles", [SPLIT, MIXED], ids=["split", "mixed"])
def test_what_gives_its_memory_back_says_the_same_and_nothing_twice(
    clock, roles, host_blocks, overlap, monkeypatch
):
    monkeypatch.setattr(moving, "MOVING_ROOM", BLOCK)
    preemptions = swapped = 0
    for seed in range(6):
        in_place, loss = seed % 2 == 0, (0.0, 0.02)[seed % 3 == 2]
        now = World(
            seed, roles, CONFIG, clock, 42, in_place, loss, "aggressive", host_blocks, overlap=overlap
        )
        draw = random.Random(seed)
        for number in range(12):
            now.start(f"s{number}", context(draw, draw.choice((8, 17, 30)), max_tokens=100, ignore_eos=True))
        for _ in range(600):
            now.happen()
            key = draw.choice(list(now.sessions))
            if draw.random() < 0.02 and not now.sessions[key].session.closed:
                now.move(key, draw.choice(tuple(MoveMode)))
            assert all(map(honest, now.living))
        preemptions += sum(instance.scheduler.preemptions for instance in now.instances.values())
        now.settle(30.0)
        for key in now.sessions:
            now.nudge(key)  # a router asks again where its move was lost
        settled(now, 60.0)
        swapped += now.swapped
    assert preemptions > 5 and (swapped > 5) is (host_blocks > 0)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_handover_copies_what_the_destination_lacks(clock, in_place):
    now = World(1, {"prefill": Budget(64, 0), "decode": Budget(0, 8)}, CONFIG, clock, in_place=in_place)
    copied: list[tuple[int, ...]] = []
    for name in ("write_in_place", "send_blocks"):
        instance = now.instances["prefill"]
        whole = getattr(instance, name)
        setattr(
            instance,
            name,
            lambda stage, *args, whole=whole: (copied.append(stage.count), whole(stage, *args)),
        )
    draw = random.Random(1)
    first = now.start("first", context(draw, 40, max_tokens=30, ignore_eos=True))
    settled(now, 20.0)
    assert sum(copied) >= 10
    copied.clear()
    turn = replace(first.context, prompt=(*first.context.prompt, *first.ids[:20], 1, 2, 3))
    now.start("second", turn)
    settled(now, 20.0)
    assert sum(copied) <= 2, "of 63 tokens in blocks of 4 the first 60 are there"
    prefill = now.instances["prefill"].engine.load
    assert (prefill.asked_tokens, prefill.hit_tokens) == (40 + 63, 40)


def settled(now: World, seconds: float) -> None:
    now.settle(seconds)
    all_right(now)


def until(now: World, true, things: int = 20000) -> None:
    """Let things happen until the condition holds."""
    for _ in range(things):
        if true():
            return
        now.happen()
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 2, BLOCK, BLOCK + 1])
def test_prompts_at_block_borders_and_short_outputs_are_handed_over_right(clock, in_place, max_tokens):
    now = World(max_tokens, SPLIT, CONFIG, clock, in_place=in_place)
    draw = random.Random(5)
    for number, prompt in enumerate((1, BLOCK - 1, BLOCK, BLOCK + 1, 16, 17, CONTEXT - 2, CONTEXT - 1)):
        now.start(f"s{number}", context(draw, prompt, max_tokens=max_tokens))
    settled(now, 20.0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("in_place", [True, False])
def test_cancel_at_any_moment_frees_within_a_round_and_a_lease(clock, in_place, overlap):
    for moment in range(0, 160, 5):
        now = World(moment, SPLIT, CONFIG, clock, in_place=in_place, overlap=overlap)
        now.start("s", context(random.Random(moment), 33, max_tokens=60))
        for _ in range(moment):
            now.happen()
            if moment > 60 and not now.sessions["s"].session.pending and now.sessions["s"].got:
                now.move("s")
        now.cancel("s")
        now.settle(CONFIG.lease_s + 0.1)
        all_right(now)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("wait", [0, 3, 6, 10, 20])
def test_a_destination_that_hangs_stops_no_stream(clock, in_place, wait):
    now = World(wait, SPLIT, CONFIG, clock, in_place=in_place)
    stream = now.start("s", context(random.Random(wait), 40, max_tokens=100, ignore_eos=True))
    decoders = [one.me for one in now.decoders]
    until(
        now, lambda: len(stream.got) > 5 and stream.session.owner in decoders and not stream.session.pending
    )
    [target] = [one for one in now.decoders if one.me != stream.session.owner]
    now.move_to("s", target)
    for _ in range(wait):
        now.happen()
    target.hung = True
    now.settle(CONFIG.lease_s + CONFIG.hung_after_s + CONFIG.silence_s)
    assert stream.session.closed and stream.ids == answer(stream.context, CONTEXT)
    target.hung = False
    settled(now, 5.0)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_windowed_stream_keeps_what_a_copy_needs_and_goes_on_when_that_is_over(clock, in_place):
    now = World(1, SPLIT, CONFIG, clock, 12, in_place, window=25)
    stream = now.start("s", context(random.Random(1), 60, max_tokens=100, ignore_eos=True))
    until(
        now, lambda: stream.session.owner in [one.me for one in now.decoders] and not stream.session.pending
    )
    source, target = sorted(now.decoders, key=lambda one: one.me != stream.session.owner)
    for _ in range(4):
        arrive(now)
    assert source.pool.counts().held <= 7, "six full blocks, and one that is not"
    now.move_to("s", target)
    for _ in range(60):
        arrive(now)  # the copy takes its time
    assert now.copies and source.pool.counts().held == 12, "all that is not sent is kept"
    now.kill(target.me.instance)
    settled(now, 20.0)


def test_a_copy_goes_the_way_that_its_reservation_said(clock):
    """Between a start and its reservation another session may find the destination's memory out of reach."""
    now = World(1, {"prefill": Budget(16, 0), "decode": Budget(0, 8)}, CONFIG, clock)
    for number, key in enumerate("st"):
        now.start(key, context(random.Random(number), 30, max_tokens=30))
    arrive(now)  # both are planned in place, and neither has run
    now.unreachable |= {one.me for one in now.instances.values()}
    now.start("u", context(random.Random(3), 30, max_tokens=30))
    for _ in range(4):
        arrive(now)  # the decoders are known to be out of reach before the last has run
    prefill = now.instances["prefill"].engine
    planned = {one.lease: one.one_sided for seat in prefill._seats.values() for one in seat.sources}
    told = {
        lease.lease: lease.one_sided
        for decoder in now.decoders
        for seat in decoder.engine._seats.values()
        for lease in seat.leases
    }
    assert {"s", "t"} <= {lease.session for lease in told}
    assert told.items() <= planned.items()
    settled(now, 20.0)


def arrive(now: World) -> None:
    while any(now.streams.values()):
        now.deliver()
    for instance in now.living:
        instance.engine.round(wait=False)


def test_a_destination_without_shared_memory_is_reached_another_way(clock):
    now = World(1, SPLIT, CONFIG, clock)
    for name in ("decode-0", "decode-1"):
        now.instances[name] = now.build(name, 2, shares_memory=False)
    now.start("s", context(random.Random(1), 30, max_tokens=30))
    settled(now, 20.0)
    assert any(now.moves)


def test_reservations_are_met_in_order_of_arrival(clock):
    """A small one does not overtake a large one for ever."""
    now = World(1, {"prefill": Budget(64, 0), "decode": Budget(0, 8)}, CONFIG, clock, blocks=CONTEXT // BLOCK)
    draw = random.Random(1)
    for number in range(6):
        now.start(f"small{number}", context(draw, 8, max_tokens=40, ignore_eos=True))
    now.start("large", context(draw, 60, max_tokens=1000, ignore_eos=True))
    for number in range(6, 12):
        now.start(f"small{number}", context(draw, 8, max_tokens=40, ignore_eos=True))
    settled(now, 60.0)


def test_a_prompt_that_fits_no_memory_waits_and_harms_nobody(clock):
    now = World(1, MIXED, CONFIG, clock, blocks=8)
    stuck = now.start("stuck", context(random.Random(1), 60, max_tokens=5))
    now.start("s", context(random.Random(2), 8, max_tokens=8))
    now.settle(5.0)
    assert now.sessions["s"].session.closed and not stuck.got
    now.cancel("stuck")
    settled(now, CONFIG.lease_s)


def test_blocks_that_a_receive_may_still_write_are_kept_after_their_lease(clock):
    now = World(1, {"prefill": Budget(16, 0), "decode": Budget(0, 8)}, CONFIG, clock, in_place=False)
    now.start("s", context(random.Random(1), 30, max_tokens=30))
    until(now, lambda: now.receives)
    decode = now.instances["decode"]
    before = decode.pool.counts().leased
    now.cancel("s")
    arrive(now)
    clock.now += 2 * CONFIG.lease_s
    arrive(now)
    assert decode.pool.counts().leased == before > 0, "the receive has not ended"
    while now.receives:
        now.receive()
    settled(now, CONFIG.lease_s)


def remembering(clock, sessions: int) -> Engine:
    """An engine that remembers the marks of as many sessions that it never held, or holds no more."""
    engine = World(1, MIXED, CONFIG, clock).instances["a"].engine
    for number in range(sessions):
        engine.post(f"s{number}", FromRouter(ROUTER, Revoke(f"s{number}", Epoch(1, 5))))
    engine.round(wait=False)
    return engine


@pytest.mark.parametrize("sessions", [0, 500])
def test_what_is_only_remembered_costs_a_round_nothing(clock, monkeypatch, sessions):
    engine = remembering(clock, sessions)
    engine.post("live", FromRouter(ROUTER, Start("live", Epoch(1, 1), context(random.Random(1), 8))))
    engine.round(wait=False)
    fed, on = [], Seat.on
    monkeypatch.setattr(Seat, "on", lambda seat, *event: (fed.append(seat.session), on(seat, *event))[1])
    clock.now += 2 * CONFIG.heartbeat_s
    engine.post_all(PeerLost(Incarnation("b", 9)))
    for _ in range(3):
        engine.round(wait=False)
    assert set(fed) == {"live"} == set(engine._seats)
    assert [news.session for _, news in engine.sessions] == ["live"]


def test_what_a_router_has_seen_goes_with_the_next_event(clock):
    engine = World(1, MIXED, CONFIG, clock).instances["a"].engine
    engine.post("s", FromRouter(ROUTER, Start("s", Epoch(1, 1), context(random.Random(1), 8, max_tokens=90))))
    for _ in range(6):
        engine.round(wait=False)
    engine.post("s", FromRouter(ROUTER, Seen("s", 1, 3)))
    engine.round(wait=False)
    held = engine._seats["s"].holding
    assert held is not None and held.first == 0, "records may go, and need not yet"
    clock.now += 2 * CONFIG.heartbeat_s
    engine.round(wait=False)
    held = engine._seats["s"].holding
    assert held is not None and held.first == held.seen == 3
    engine.post("s", FromRouter(ROUTER, Seen("s", 1, 5)))
    engine.post("s", FromRouter(ROUTER, Revoke("s", Epoch(1, 1))))
    engine.round(wait=False)
    assert not engine._seats and not engine._seen


def test_a_mark_is_heeded_for_the_grace_time_and_then_forgotten(clock):
    engine = remembering(clock, 1)
    late = FromRouter(ROUTER, Start("s0", Epoch(1, 5), context(random.Random(1), 8)))
    for wait_s, begun in (
        (0.9 * CONFIG.grace_s, False),
        (0.9 * CONFIG.grace_s, False),
        (CONFIG.grace_s, True),
    ):
        clock.now += wait_s
        engine.round(wait=False)
        clock.now += CONFIG.heartbeat_s
        engine.round(wait=False)
        engine.post("s0", late)
        engine.round(wait=False)
        assert bool(engine.sessions) is begun, "each word of the session keeps its mark"


def test_an_engine_that_fails_says_so(clock, monkeypatch):
    monkeypatch.undo()  # real time: the thread waits for what arrives
    now = World(1, MIXED, CONFIG, clock)
    engine = now.instances["a"].engine
    engine.start()
    assert engine.alive
    engine.post("s", object())  # type: ignore[arg-type]  no event that a seat knows
    engine._thread.join(10)
    assert not engine.alive and isinstance(engine.failure, AssertionError)


def test_an_engine_stops_when_it_is_told(clock, monkeypatch):
    monkeypatch.undo()
    engine = World(1, MIXED, CONFIG, clock).instances["a"].engine
    engine.start()
    engine.stop(10.0)
    assert not engine.alive and engine.failure is None


def test_every_chunk_of_a_prompt_is_noted(clock):
    engine = World(1, MIXED, CONFIG, clock).instances["a"].engine
    engine.post("s", FromRouter(ROUTER, Start("s", Epoch(1, 1), context(random.Random(1), 30))))
    for _ in range(8):
        engine.round(wait=False)
    noted = engine._chronicle._journal.of("s")
    chunks = [decision.figures for decision in noted if decision.what == "chunk"]
    assert [(figures["from"], figures["tokens"]) for figures in chunks] == [(0, 12), (12, 12), (24, 6)]
