"""The supervisor: whatever ends, hangs or fails to start is started again, in a later life; nobody else is touched."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RpcError,
    RuntimeEnvSetupError,
)
from stub_instance import StubInstance
from waiting import until

from penstock.cluster.config import ClusterConfig, InstanceSettings
from penstock.cluster.link import Deaths
from penstock.cluster.ray_calls import asked, described, named_actor, plain_errors
from penstock.cluster.registry import Running, Spec, State, specs
from penstock.cluster.supervisor import Found, Supervisor
from penstock.handover.config import HandoverConfig
from penstock.handover.values import Incarnation

HANDOVER = HandoverConfig(heartbeat_s=0.02, hung_after_s=0.4)
SPECS = specs(ClusterConfig())
NAMES = [spec.name for spec in SPECS]


class FakeHost:
    """Instances in this process."""

    def __init__(self):
        self.living: dict[Incarnation, StubInstance] = {}
        self.deaths: dict[Incarnation, asyncio.Future[str]] = {}
        self.running: dict[Incarnation, Running] = {}
        self.killed: list[Incarnation] = []
        self.failures = 0
        """How many starts are to fail from now on."""
        self.slow_deaths = 0
        """How many kills are to end before the process does."""
        self.found: dict[Incarnation, Found] = {}
        """What `find` says instead of the truth."""
        self.kept = ""
        self.left: list[str] = []
        """Instances whose place was given back."""
        self.full = False
        """There is no room for more."""
        self.placed: set[str] = set()
        """Instances that have a place."""

    async def find(self) -> dict[Incarnation, Found]:
        return {who: Found(self.running[who]) for who in self.living} | self.found

    async def place(self, spec: Spec) -> str:
        if self.full and spec.name not in self.placed:
            await asyncio.sleep(HANDOVER.heartbeat_s)
            return "there is no room"
        self.placed.add(spec.name)
        return ""

    async def start(self, spec: Spec, life: int) -> Running:
        if Incarnation(spec.name, life) in self.living:
            return self.running[Incarnation(spec.name, life)]
        if self.failures:
            self.failures -= 1
            raise ValueError("no such model")
        who = Incarnation(spec.name, life)
        settings = InstanceSettings(
            name=spec.name,
            life=life,
            prefill_tokens=spec.prefill_tokens,
            decode_slots=spec.decode_slots,
            handover=HANDOVER,
        )
        instance = StubInstance(settings)
        self.running[who] = Running(await instance.start(), 1, "here")
        self.living[who] = instance
        self.deaths[who] = asyncio.get_running_loop().create_future()
        return self.running[who]

    async def ended(self, who: Incarnation) -> str:
        return await asyncio.shield(self.deaths[who])

    async def kill(self, who: Incarnation) -> None:
        self.killed.append(who)
        if self.slow_deaths:
            self.slow_deaths -= 1
            raise TimeoutError
        await self.die(who)

    async def places(self) -> list[str]:
        return list(self.placed)

    async def leave(self, name: str) -> None:
        self.left.append(name)
        self.placed.discard(name)

    async def recall(self) -> str:
        return self.kept

    async def keep(self, text: str) -> None:
        self.kept = text

    async def die(self, who: Incarnation) -> None:
        instance = self.living.pop(who, None)
        if instance is not None:
            await instance.stop()
            self.deaths[who].set_result("its process died")


def play(scenario: Callable[[FakeHost], Awaitable[None]]) -> None:
    """Run it with a host of its own, whose instances are gone afterwards."""

    async def played() -> None:
        host = FakeHost()
        try:
            async with asyncio.timeout(60):
                await scenario(host)
        finally:
            for who in list(host.living):
                await host.die(who)

    asyncio.run(played())


@asynccontextmanager
async def supervised(host: FakeHost) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(host, SPECS, HANDOVER, "controller:test", lambda: None)
    task = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: serving(supervisor) == NAMES)
        yield supervisor
        assert not task.done()
    finally:
        await cancelled(task)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def serving(supervisor: Supervisor) -> list[str]:
    records = supervisor.registry.records
    return [name for name in NAMES if records[name].state == State.SERVING]


def lives(supervisor: Supervisor) -> dict[str, int]:
    return {name: supervisor.registry[name].life for name in NAMES}


async def replaced(supervisor: Supervisor, who: Incarnation) -> None:
    """A later life of this instance serves, and the others live as before."""
    before = lives(supervisor)
    await until(lambda: supervisor.registry[who.instance].life > who.life and serving(supervisor) == NAMES)
    after = lives(supervisor)
    assert {name for name in NAMES if after[name] != before[name]} <= {who.instance}


def test_a_process_that_dies_has_a_later_life():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            who = supervisor.registry["decode-0"].incarnation
            await host.die(who)
            await replaced(supervisor, who)
            assert supervisor.registry["decode-0"].restarts == 1

    play(scenario)


def test_an_instance_that_says_nothing_is_ended_before_its_next_life_begins():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            who = supervisor.registry["decode-1"].incarnation
            host.living[who].hung = True
            await replaced(supervisor, who)
            assert host.killed == [who]

    play(scenario)


def test_an_instance_that_serves_again_is_listed_only_in_its_later_life():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            who = supervisor.registry["decode-0"].incarnation
            await host.die(who)
            await until(lambda: not supervisor.registry["decode-0"].usable)
            assert [record.spec.name for record in supervisor.registry.usable()] == ["prefill-0", "decode-1"]

    play(scenario)


def test_a_writer_that_a_peer_condemns_is_ended_and_the_peers_hear_of_its_death():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            writer = supervisor.registry["prefill-0"].incarnation
            peer = host.living[supervisor.registry["decode-0"].incarnation]
            peer.writer = writer
            await replaced(supervisor, writer)
            assert host.killed == [writer]
            await until(lambda: writer in peer.dead)

    play(scenario)


def test_peers_hear_again_of_a_death_under_an_earlier_controller():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            current = supervisor.registry["prefill-0"].incarnation
            earlier = current._replace(life=current.life - 1)
            peer = host.living[supervisor.registry["decode-0"].incarnation]
            peer.writer = earlier
            await until(lambda: earlier in peer.dead)
            assert supervisor.registry["prefill-0"].incarnation == current and host.killed == []

    play(scenario)


def test_a_start_that_fails_is_tried_again_and_its_reason_is_kept_meanwhile():
    async def scenario(host: FakeHost) -> None:
        host.failures = 2
        supervisor = Supervisor(
            host, SPECS, HANDOVER, "controller:test", lambda: reasons.update(told(supervisor))
        )
        reasons: set[str] = set()
        task = asyncio.create_task(supervisor.run())
        await until(lambda: serving(supervisor) == NAMES)
        await cancelled(task)
        assert reasons == {"", "no such model"} and told(supervisor) == {""}

    def told(supervisor: Supervisor) -> set[str]:
        return {record.reason for record in supervisor.registry.records.values()}

    play(scenario)


def test_a_new_controller_takes_over_what_runs_and_ends_what_is_older():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as first:
            older = Incarnation("decode-0", first.registry["decode-0"].life - 1)
            await host.start(SPECS[1], older.life)
            second = Supervisor(host, SPECS, HANDOVER, "controller:test", lambda: None)
            task = asyncio.create_task(second.run())
            await until(lambda: host.killed == [older])
            assert lives(second) == lives(first) and serving(second) == NAMES
            await cancelled(task)

    play(scenario)


@asynccontextmanager
async def succeeded(host: FakeHost) -> AsyncIterator[tuple[Supervisor, list[list[str]]]]:
    """A second controller after one that died; what its routers were told, each time."""
    async with supervised(host):
        pass
    told: list[list[str]] = []
    second = Supervisor(
        host,
        SPECS,
        HANDOVER,
        "controller:test",
        lambda: told.append([record.spec.name for record in second.registry.usable()]),
    )
    task = asyncio.create_task(second.run())
    try:
        await until(lambda: serving(second) == NAMES)
        yield second, told
        assert not task.done()
    finally:
        await cancelled(task)


def test_a_new_controller_tells_routers_of_all_that_it_found_at_once():
    async def scenario(host: FakeHost) -> None:
        async with succeeded(host) as (second, told):
            assert told == [NAMES] and host.killed == []
            assert all(not record.restarts for record in second.registry.records.values())

    play(scenario)


def test_a_new_controller_gives_places_back_that_no_instance_is_to_have():
    async def scenario(host: FakeHost) -> None:
        host.placed = {"decode-9"}
        async with supervised(host):
            await until(lambda: host.placed == set(NAMES))
            assert host.left == ["decode-9"]

    play(scenario)


def test_an_instance_without_room_waits_and_says_why_and_those_with_room_serve():
    async def scenario(host: FakeHost) -> None:
        host.full, host.placed = True, {"prefill-0", "decode-0"}
        supervisor = Supervisor(host, SPECS, HANDOVER, "controller:test", lambda: None)
        task = asyncio.create_task(supervisor.run())
        await until(lambda: serving(supervisor) == ["prefill-0", "decode-0"])
        await until(lambda: supervisor.registry["decode-1"].state == State.PENDING)
        assert supervisor.registry["decode-1"].reason == "there is no room"
        assert [view.name for view in supervisor.views(0.0) if not view.placed] == ["decode-1"]
        life, host.full = supervisor.registry["decode-1"].life, False
        await until(lambda: serving(supervisor) == NAMES)
        record = supervisor.registry["decode-1"]
        assert (record.life, record.reason, record.restarts) == (life, "", 0)
        await cancelled(task)

    play(scenario)


def test_a_new_controller_goes_on_with_a_life_that_is_starting():
    async def scenario(host: FakeHost) -> None:
        spec = SPECS[0]
        who = Incarnation(spec.name, 5)
        await host.start(spec, who.life)
        host.found[who] = Found()
        async with supervised(host) as supervisor:
            assert supervisor.registry[spec.name].incarnation == who and host.killed == []

    play(scenario)


def test_a_new_controller_replaces_what_does_not_answer_it():
    async def scenario(host: FakeHost) -> None:
        spec = SPECS[0]
        who = Incarnation(spec.name, 5)
        await host.start(spec, who.life)
        host.found[who] = Found(hung=True)
        async with supervised(host) as supervisor:
            assert supervisor.registry[spec.name].life > who.life and host.killed == [who]

    play(scenario)


def test_a_process_that_does_not_end_yet_is_killed_again_before_its_next_life_begins():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            who = supervisor.registry["decode-0"].incarnation
            host.slow_deaths = 2
            host.living[who].hung = True
            await replaced(supervisor, who)
            assert host.killed == [who] * 3

    play(scenario)


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)), st.integers(1, 8))
def test_each_listener_hears_of_the_latest_deaths_once(first, then, kept):
    deaths, heard, told = Deaths(), [], 0
    deaths._lives = deque(maxlen=kept)
    for batch in (first, then):
        for life in batch:
            deaths.add(Incarnation("a", life))
        news, told = deaths.since(told)
        assert len(news) <= kept and list(news) == list(deaths._lives)[len(deaths._lives) - len(news) :]
        heard += news
        assert not batch or set(deaths._lives) <= set(heard)
        assert deaths.since(told) == ((), told)
    assert deaths.since(0)[0] == tuple(deaths._lives), "a new one hears of all that are kept"


class Handle:
    """An actor that answers `describe` with each of these in turn: an error, a pause in seconds, a result."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.describe = self

    async def remote(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return await self.remote()
        return answer


HERE = Running("here:1", 1, "node")
AWAY = ActorUnavailableError("busy", None)


@pytest.mark.parametrize("answers", [[HERE], [2 * HANDOVER.hung_after_s, HERE], [AWAY, AWAY, HERE]])
def test_an_instance_that_is_slow_to_answer_a_new_controller_is_found(answers):
    assert asyncio.run(described(Handle(*answers), 20.0, 0.001)) == HERE


def test_an_instance_that_never_answers_or_died_is_told_apart():
    with pytest.raises(TimeoutError):
        asyncio.run(described(Handle(60.0), 0.05, 0.001))
    with pytest.raises(RayActorError):
        asyncio.run(described(Handle(AWAY, RayActorError()), 20.0, 0.001))


@pytest.mark.parametrize(
    "error, kind, text",
    [
        (RayActorError(), ConnectionError, "its process died while it started"),
        (RuntimeEnvSetupError("no such image"), ConnectionError, "Ray does not start it: .*no such image"),
        (ActorUnschedulableError("too large"), ConnectionError, "Ray does not start it: .*too large"),
    ],
)
def test_whatever_ray_says_of_a_start_is_that_instances_failure_alone(error, kind, text):
    async def main():
        async with plain_errors():
            raise error

    with pytest.raises(kind, match=text):
        asyncio.run(main())


def test_a_controller_that_stood_still_blames_nobody():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            before = lives(supervisor)
            time.sleep(2 * HANDOVER.hung_after_s)  # noqa: ASYNC251  the whole process stands still
            await asyncio.sleep(4 * HANDOVER.heartbeat_s)
            assert lives(supervisor) == before and host.killed == []

    play(scenario)


@pytest.mark.parametrize("who", [Incarnation("decode-0", 1 << 60), Incarnation("nobody", 1)])
def test_to_condemn_what_does_not_live_changes_nothing(who):
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            before = lives(supervisor)
            supervisor.condemn(who, "why")
            await asyncio.sleep(2 * HANDOVER.heartbeat_s)
            assert lives(supervisor) == before and host.killed == []

    play(scenario)


def test_rays_head_is_asked_again_while_it_is_away(monkeypatch):
    monkeypatch.setattr("penstock.cluster.ray_calls.CALL_S", 0.0)
    answers = [
        RpcError("the head is away"),
        GetTimeoutError(),
        TimeoutError(),
        ValueError("there is none"),
        7,
    ]

    def call(want: int) -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer * want

    with pytest.raises(ValueError, match="there is none"):
        asyncio.run(asked(call, 2))
    assert asyncio.run(asked(call, 2)) == 14


def test_an_actor_that_ray_could_not_look_up_in_time_is_not_taken_for_dead(monkeypatch):
    said = "Failed to look up actor 'a'. There was timeout in getting the actor handle, probably because ..."
    monkeypatch.setattr("ray.get_actor", lambda *_: raised(ValueError(said)))
    with pytest.raises(TimeoutError):
        named_actor("a", "n")
    monkeypatch.setattr("ray.get_actor", lambda *_: raised(ValueError("Failed to look up actor 'a'.")))
    with pytest.raises(ValueError):
        named_actor("a", "n")


def raised(error: Exception):
    raise error
