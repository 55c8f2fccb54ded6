"""What is noted of a sequence says what its stay came to, whatever else of its session is here."""

import random

import pytest
from test_engine import CONFIG, MIXED, SPLIT, context
from toy_world import ROUTER, Clock, World

from penstock.engine import engine as engine_module
from penstock.engine.chronicle import Chronicle
from penstock.engine.sequence import Sequence
from penstock.handover.effects import FromRouter
from penstock.handover.values import Context, Epoch, SamplingParams, Start
from penstock.policy.journal import Journal


class Kept:
    """A chronicle, its clock and what it noted."""

    def __init__(self):
        self.clock = Clock()
        self._journal = Journal("a", self.clock.monotonic)
        self.chronicle = Chronicle(self._journal, self.clock.monotonic)

    def after(self, seconds: float) -> Chronicle:
        self.clock.now += seconds
        return self.chronicle

    def figures(self, what: str) -> dict:
        (found,) = [decision.figures for decision in self._journal.of("s") if decision.what == what]
        return dict(found)


@pytest.fixture
def kept() -> Kept:
    return Kept()


def sequence(n: int = 1, emitted: int = 0) -> Sequence:
    told = Context(tuple(range(10)), tuple(range(emitted)), SamplingParams(max_tokens=50))
    return Sequence.begin("s", Epoch(1, n), told, 1000)


def near(**figures: float | str) -> dict:
    return {
        name: value if isinstance(value, str) else pytest.approx(value) for name, value in figures.items()
    }


def test_a_stay_is_what_it_made_and_how_long_it_was_here(kept):
    one = sequence(emitted=3)
    kept.chronicle.queued(one)
    assert kept.figures("queued") == {"tokens": 13, "epoch": "1.1"}
    kept.after(2.0).chunk(one, 4, 9, 1, 0.5)
    assert kept.figures("chunk") == near(
        **{"from": 4}, tokens=9, batch=1, step_s=0.5, queue_s=1.5, hit_tokens=4
    )
    one.append(7)
    one.append(8)
    kept.after(1.0).gone(one)
    assert kept.figures("gone") == near(made_tokens=2, seconds=3.0)


def test_only_the_first_chunk_since_it_waited_tells_of_the_queue(kept):
    one = sequence()
    kept.chronicle.queued(one)
    kept.after(1.0).preempted(one)
    assert kept.figures("preempted") == {"tokens": 10}
    kept.after(4.0).chunk(one, 0, 5, 1, 1.0)
    assert kept.figures("chunk")["queue_s"] == pytest.approx(3.0), "since its memory was taken"
    second = Kept()
    second.chronicle.adopted(one, 2)
    second.chronicle.chunk(one, 5, 5, 1, 0.0)
    assert "queue_s" not in second.figures("chunk"), "what arrives with its KV waits for no first step"


def test_what_arrives_is_noted_with_its_blocks(kept):
    one = sequence(n=2)
    one.computed = 9
    kept.chronicle.adopted(one, 3)
    assert kept.figures("adopted") == {"tokens": 9, "blocks": 3, "epoch": "1.2"}


def test_a_grant_tells_how_long_it_was_waited_for(kept):
    one = sequence()
    kept.chronicle.queued(one)
    kept.after(5.0).reserving(one, "b", 4)
    kept.after(0.25).granted(one, "b", 1)
    assert kept.figures("reserving") == {"destination": "b", "blocks": 4}
    assert kept.figures("granted") == near(destination="b", have_blocks=1, wait_s=0.25)


@pytest.mark.parametrize("again", [False, True])
def test_a_handover_that_fails_tells_its_stall_and_the_stay_goes_on(kept, again):
    one = sequence()
    kept.chronicle.queued(one)
    kept.after(1.0).paused(one)
    was = one.key
    if again:
        one.rename(Epoch(1, 4))
        kept.chronicle.renamed(was, one)
    kept.after(0.5).resumed(one)
    assert kept.figures("resumed") == near(stall_s=0.5, epoch="1.4" if again else "1.1")
    kept.after(1.0).gone(one)
    assert kept.figures("gone") == near(made_tokens=0, seconds=2.5), "the stall is over"
    assert not kept.chronicle._stays


def test_one_that_leaves_paused_tells_its_stall(kept):
    one = sequence()
    kept.chronicle.queued(one)
    kept.after(1.0).paused(one)
    kept.after(0.5).gone(one)
    assert kept.figures("gone") == near(made_tokens=0, seconds=1.5, stall_s=0.5)


def test_a_session_that_starts_anew_has_two_stays(kept):
    old, new = sequence(), sequence(n=3)
    kept.chronicle.queued(old)
    kept.after(1.0).queued(new)
    kept.after(1.0).gone(old)
    assert kept.figures("gone") == near(made_tokens=0, seconds=2.0)
    assert list(kept.chronicle._stays) == [new.key]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


def whats(engine) -> list[str]:
    return [decision.what for decision in engine._chronicle._journal.of("s")]


def test_every_stay_in_an_engine_comes_to_an_end(clock):
    engine = World(1, MIXED, CONFIG, clock).instances["a"].engine
    told = context(random.Random(1), 30, max_tokens=4)
    for n in (1, 3):
        engine.post("s", FromRouter(ROUTER, Start("s", Epoch(1, n), told)))
        for _ in range(2 if n == 1 else 9):
            engine.round(wait=False)
    assert whats(engine).count("queued") == whats(engine).count("gone") == 2
    assert not engine._chronicle._stays


def test_a_handover_is_noted_at_both_ends(clock):
    world = World(1, SPLIT, CONFIG, clock)
    world.start("s", context(random.Random(1), 20, max_tokens=12, ignore_eos=True))
    world.settle(30)
    assert world.over
    told = {name: whats(instance.engine) for name, instance in world.instances.items()}
    assert {"queued", "chunk", "reserving", "granted", "gone"} <= set(told.pop("prefill"))
    assert {"adopted", "gone"} <= {what for each in told.values() for what in each}
    assert not any(instance.engine._chronicle._stays for instance in world.instances.values())
