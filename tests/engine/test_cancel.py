"""A cancel, and a deadline, which is one, reaches a request wherever it is within one step, and frees everything."""

import random
from collections import Counter

import pytest
from toy_model import VOCABULARY
from toy_world import Clock, World

from penstock.engine import engine as engine_module
from penstock.handover.config import HandoverConfig
from penstock.handover.source import State
from penstock.handover.values import Context, SamplingParams
from penstock.policy.batching import Budget

CONFIG = HandoverConfig(stage_blocks=4, final_blocks=2)
SPLIT = {"prefill": Budget(16, 0), "decode": Budget(0, 8)}
PROMPT = 120
VICTIM, NEIGHBOUR = "victim", "neighbour"
EXCHANGE = 3
"""Rounds in which a lease is given up: the cancel, `stop`, and its answer."""


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


def request(seed: int, prompt: int, max_tokens: int = 60) -> Context:
    draw = random.Random(seed)
    ids = tuple(draw.randrange(VOCABULARY) for _ in range(prompt))
    return Context(ids, (), SamplingParams(max_tokens=max_tokens, ignore_eos=True))


def sequence(world: World, instance: str):
    found = [one for one in world.instances[instance].scheduler if one.session == VICTIM]
    return found[0] if found else None


def source(world: World):
    seat = world.instances["prefill"].engine._seats.get(VICTIM)
    return seat and seat.source


def copies(world: World) -> list:
    return [copy.stage for copy in world.copies if copy.stage.lease.session == VICTIM]


STATES = {
    "queued": lambda world: (one := sequence(world, "prefill")) and not one.computed,
    "prefilling": lambda world: (one := sequence(world, "prefill")) and 0 < one.computed < PROMPT,
    "reserving": lambda world: (one := source(world)) and one.state is State.RESERVING,
    "transferring": lambda world: any(stage.commit is None for stage in copies(world)),
    "committing": lambda world: any(stage.commit is not None for stage in copies(world)),
    "decoding": lambda world: (one := sequence(world, "decode")) and one.made > 3,
}


def bring(world: World, state: str) -> None:
    """A neighbour that decodes, and the victim in that state."""
    world.start(NEIGHBOUR, request(1, 8, max_tokens=140))
    until(world, lambda: len(world.sessions[NEIGHBOUR].got) > 2)
    if state == "queued":
        world.start("first", request(2, PROMPT))
        until(world, lambda: len(list(world.instances["prefill"].scheduler)) > 0)
    world.start(VICTIM, request(3, PROMPT, max_tokens=30))
    until(world, lambda: STATES[state](world))


def until(world: World, reached) -> None:
    for _ in range(3000):
        if reached():
            return
        world.happen()
    raise AssertionError("the state was never reached")


def steps_of(world: World) -> Counter:
    """How many steps ran the victim, by instance, from now on."""
    steps: Counter[str] = Counter()
    for name, instance in world.instances.items():
        plan = instance.scheduler.next_batch

        def counted(*args, name=name, plan=plan, **options):
            batch = plan(*args, **options)
            steps[name] += any(one.session == VICTIM for one, _ in batch)
            return batch

        instance.scheduler.next_batch = counted
    return steps


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "over a pair"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("seed", range(6))
def test_a_cancelled_request_runs_one_step_more_at_most_and_leaves_nothing(clock, state, in_place, seed):
    world = World(seed, SPLIT, CONFIG, clock, in_place=in_place)
    bring(world, state)
    steps, now = steps_of(world), clock.now
    world.cancel(VICTIM)
    world.busy = True
    for _ in range(EXCHANGE):
        while any(world.streams.values()) or world.due_copies or world.receives:
            world.deliver(), world.copy(), world.receive()
        for instance in world.living:
            world._round(instance)
    assert clock.now == now, "no deadline has helped"
    assert all(count <= 1 for count in steps.values()), f"it ran on: {steps}"
    for instance in world.living:
        books = [*instance.pool._tables, *instance.scheduler._leased, *instance.engine._moving._coming]
        assert not [key for key in books if key.session == VICTIM]
        assert VICTIM not in instance.engine._seats and sequence(world, instance.me.instance) is None
    world.busy = False
    world.settle(30.0)
    assert world.over, "the others go on to their ends"


@pytest.mark.parametrize("seed", range(6))
def test_a_long_prompt_stops_at_the_next_chunk_and_the_next_one_takes_its_place(clock, seed):
    world = World(seed, SPLIT, CONFIG, clock)
    world.start(VICTIM, request(3, PROMPT))
    until(world, lambda: STATES["prefilling"](world))
    world.start("next", request(4, 16))
    prefill = world.instances["prefill"]
    until(world, lambda: any(one.session == "next" for one in prefill.scheduler))
    world.cancel(VICTIM)
    while any(world.streams.values()):
        world.deliver()
    prefill.engine.round(wait=False)  # the chunk under way
    assert [one.session for one, _ in prefill.scheduler.next_batch()] == ["next"]


@pytest.mark.parametrize("state, gone", [("queued", True), ("prefilling", False)])
def test_a_cancel_is_heard_while_a_step_runs_and_only_what_that_computes_stays_until_its_end(
    clock, state, gone
):
    world = World(2, SPLIT, CONFIG, clock)
    assert world.hears
    bring(world, state)
    prefill = world.instances["prefill"]
    launch, heard = prefill.model.launch, []

    def cancelled_under_way(items, after, meanwhile):
        flight = launch(items, after, lambda: None)
        if not heard:
            world.cancel(VICTIM)
            while any(world.streams.values()):
                world.deliver()
            meanwhile()
            heard.append(sequence(world, "prefill") is None and VICTIM not in prefill.engine._seats)
            assert prefill.engine.load.waiting == 0
        return flight

    prefill.model.launch = cancelled_under_way
    prefill.engine.round(wait=False)
    assert heard == [gone]
    assert sequence(world, "prefill") is None and VICTIM not in prefill.engine._seats
    assert all(key.session != VICTIM for key in prefill.pool._tables)
    world.settle(30.0)
    assert world.over


def test_a_load_view_knows_of_a_cancel_before_the_next_step(clock):
    world = World(0, SPLIT, CONFIG, clock)
    assert not world.hears
    bring(world, "queued")
    prefill = world.instances["prefill"]
    prefill.engine._beat()
    prefill.engine._flush()
    assert prefill.engine.load.waiting == 1
    world.cancel(VICTIM)
    while any(world.streams.values()):
        world.deliver()
    prefill.engine.round(wait=False)
    assert prefill.engine.stepping and prefill.engine.load.waiting == 0
