"""An engine that drains: it begins and takes nothing more, what runs leaves it with its KV, and then it is empty."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_engine import CONFIG, MIXED, SPLIT, all_right, clock, context
from toy_world import Instance, Stream, World

from penstock.handover import effects as fx
from penstock.handover.frames import InstanceFrame, Step
from penstock.handover.session import Session
from penstock.handover.values import Context, Incarnation, SamplingParams
from penstock.policy.batching import Budget

__all__ = ["clock"]  # the fixture
PATIENT = replace(CONFIG, hung_after_s=1e6, silence_s=1e6, lease_s=1e6, reserve_wait_s=1e6, grace_s=1e7)
"""Nothing is done anew because it took long."""


class Emptied(World):
    """Its router does what the shipped one does with sessions of instances that drain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.waiting: set[str] = set()
        """Sessions that their owner has not begun."""

    def drain(self, name: str) -> None:
        instance = self.instances[name]
        instance.engine.assign(instance.role, True)

    def flip(self, name: str, role: Budget) -> None:
        self.instances[name].role = self.roles[name] = role
        self.instances[name].engine.assign(role, False)

    @property
    def fed(self) -> int:
        """Tokens that went through a model."""
        return sum(instance.model.fed for instance in self.instances.values())

    @property
    def decoders(self) -> list[Instance]:
        return [instance for instance in super().decoders if not drains(instance)]

    def dispatch(self, stream: Stream) -> None:
        prefills = [one for one in self.living if one.role.prefill_tokens and not drains(one)]
        prefill = self.draw.choice(prefills)
        others = [one for one in self.decoders if one is not prefill]
        stays = prefill.role.decode_slots and (not others or self.draw.random() < 0.3)
        decode = None if stays else self.address(self.draw.choice(others))
        self.tell(stream, fx.Dispatched(self.address(prefill), decode))

    def pass_time(self, seconds: float | None = None) -> None:
        super().pass_time(seconds)
        for key, stream in self.sessions.items():
            owner, pending = stream.session.owner, stream.session.pending
            if (
                owner
                and drains(self.instances[owner.instance])
                and pending is None
                and key not in self.waiting
            ):
                others = [one for one in self.decoders if one.me != owner]
                if others and not stream.session.closed:
                    self.move_to(key, self.draw.choice(others))

    def _router_hears(self, sender: Incarnation, frame: InstanceFrame) -> None:
        super()._router_hears(sender, frame)
        for news in frame.news if isinstance(frame, Step) else ():
            stream = self.sessions[news.session]
            if stream.session.owner != sender or stream.session.epoch != news.epoch:
                continue
            (self.waiting.add if news.waits else self.waiting.discard)(news.session)
            if news.waits and isinstance(frame, Step) and frame.load and frame.load.draining:
                self.tell(stream, fx.RecoverAsked("it had not begun"))


def computed_once(now: Emptied) -> int:
    """Tokens that must go through a model, each once: all but the last of every stream."""
    return sum(len(stream.context.prompt) + len(stream.ids) - 1 for stream in now.sessions.values())


def drains(instance: Instance) -> bool:
    return instance.engine.load.draining


def distinct(draw: random.Random, number: int, length: int = 0) -> Context:
    """A prompt that shares no block with another's, and nothing that is cut short."""
    some = context(draw)
    length = length or draw.choice((5, 16, 33, 64))
    prompt = (number, *(draw.randrange(97) for _ in range(length - 1)))
    asked = SamplingParams(seed=number, max_tokens=draw.choice((8, 20, 60)), ignore_eos=True)
    return replace(some, prompt=prompt, params=asked, cache_ttl_s=0.0)


def events(world: World, count: int) -> None:
    for _ in range(count):
        world.happen()


def settled(world: World) -> None:
    for _ in range(20):
        world.settle(2.0)
        for key in world.sessions:
            world.nudge(key)
    all_right(world)


DRAINS = st.tuples(
    st.integers(0, 2**32),
    st.sampled_from(("split", "mixed")),
    st.booleans(),
    st.integers(1, 6),
    st.integers(0, 400),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(DRAINS)
def test_a_drained_instance_loses_no_token_and_none_is_computed_again(clock, case):
    seed, roles, in_place, sessions, before = case
    now = Emptied(seed, dict(SPLIT if roles == "split" else MIXED), PATIENT, clock, 256, in_place)
    draw = random.Random(seed)
    gone = draw.choice([name for name in now.roles if name != "prefill"])
    for number in range(sessions):
        now.start(f"s{number}", distinct(draw, number))
        events(now, draw.choice((0, before)))
    now.drain(gone)
    events(now, draw.choice((0, 40, 400)))
    now.start("late", distinct(draw, 96))
    settled(now)
    load = now.instances[gone].engine.load
    assert load.draining and not load.sessions
    assert now.fed == computed_once(now)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.sampled_from((0.05, 0.25)), st.booleans(), st.sampled_from((40, 256)))
def test_streams_are_right_where_an_instance_drains_and_the_network_loses_messages(
    clock, seed, loss, in_place, blocks
):
    now = Emptied(seed, dict(MIXED), CONFIG, clock, blocks, in_place, loss)
    draw = random.Random(seed)
    for number in range(4):
        now.start(f"s{number}", context(draw))
        events(now, 40)
    now.drain("b")
    events(now, 200)
    settled(now)
    assert not now.instances["b"].engine.load.sessions


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.booleans())
def test_a_flipped_instance_loses_no_token_and_takes_the_work_of_its_new_role(clock, seed, in_place):
    now = Emptied(seed, dict(SPLIT), PATIENT, clock, 256, in_place)
    draw = random.Random(seed)
    for number in range(4):
        now.start(f"s{number}", distinct(draw, number))
        events(now, 60)
    now.flip("prefill", Budget(16, 8))  # at once
    now.drain("decode-0")
    events(now, 60)
    while now.instances["decode-0"].engine.load.sessions or not drains(now.instances["decode-0"]):
        now.settle(0.02)
    now.flip("decode-0", Budget(16, 0))
    now.settle(0.02)
    for number in range(4, 10):
        now.start(f"s{number}", distinct(draw, number))
        events(now, 60)
    settled(now)
    assert now.fed == computed_once(now)
    assert not drains(now.instances["decode-0"])


def sent(now: Emptied, number: int, prefill: str, decode: str | None) -> None:
    """A session that is prefilled here and decoded there."""
    stream = Stream(distinct(random.Random(1), number, 64), Session(f"s{number}", 1), heard_at=now.clock.now)
    now.sessions[f"s{number}"] = stream
    there = now.address(now.instances[decode]) if decode else None
    now.tell(stream, fx.Dispatched(now.address(now.instances[prefill]), there))


def until(now: Emptied, true: Callable[[], object]) -> None:
    for _ in range(10_000):
        if true():
            return
        now.happen()
    raise AssertionError("this never came to be")


def test_who_waits_for_room_at_an_instance_that_drains_is_turned_away_at_once(clock):
    now = Emptied(1, {**SPLIT, "decode-0": Budget(0, 1)}, PATIENT, clock, 256)
    for number in range(3):
        sent(now, number, "prefill", "decode-0")
    crowded = now.instances["decode-0"].engine
    until(now, lambda: crowded._moving._waiting)
    now.drain("decode-0")
    crowded.round(wait=False)
    assert not crowded._moving._waiting
    settled(now)


def test_what_has_memory_but_no_step_yet_begins_elsewhere(clock):
    now = Emptied(1, dict(MIXED), PATIENT, clock, 256)
    for number in range(6):
        sent(now, number, "a", None)
    scheduler = now.instances["a"].scheduler
    until(now, lambda: any(one.admitted and not one.computed for one in scheduler))
    assert any(one.computed for one in scheduler)
    now.drain("a")
    for _ in range(10):
        now.instances["a"].engine.round(wait=False)  # before the router hears of it
    settled(now)
    assert now.fed == computed_once(now)


@pytest.mark.parametrize("drain", [True, False])
def test_what_an_instance_is_assigned_is_what_it_says(clock, drain: bool):
    now = Emptied(1, dict(SPLIT), PATIENT, clock)
    now.instances["decode-0"].engine.assign(Budget(7, 3), drain)
    now.instances["decode-0"].engine.round(wait=False)
    load = now.instances["decode-0"].engine.load
    assert (load.prefill_tokens, load.decode_slots, load.draining) == (7, 3, drain)
