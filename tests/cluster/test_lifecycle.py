"""Instances drained, flipped, restarted and scaled: never the last, one at a time, and remembered."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import grpc
import pytest
from test_supervisor import HANDOVER, NAMES, SPECS, FakeHost, cancelled, play, serving, supervised
from waiting import until

from penstock.cluster.config import ClusterConfig
from penstock.cluster.lifecycle import Lifecycle
from penstock.cluster.operation import Phase, Progress
from penstock.cluster.refusal import Refused
from penstock.cluster.registry import State
from penstock.cluster.supervisor import Supervisor

CONFIG = ClusterConfig(drain_s=0.4, start_s=20.0)


def played(scenario: Callable[[FakeHost, Supervisor, Lifecycle], Awaitable[None]]) -> None:
    async def whole(host: FakeHost) -> None:
        async with supervised(host) as supervisor:
            await scenario(host, supervisor, Lifecycle(supervisor, CONFIG, HANDOVER))

    play(whole)


async def steps(operation) -> list[Progress]:
    return [progress async for progress in operation]


def pools(supervisor: Supervisor) -> dict[str, str]:
    return {name: record.spec.pool for name, record in supervisor.registry.records.items()}


def sessions(supervisor: Supervisor, name: str) -> int:
    load = supervisor.load(name)
    return load.sessions if load else 0


def test_a_drained_instance_ends_and_has_no_further_life():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        who = supervisor.registry["decode-0"].incarnation
        host.living[who].load = replace(host.living[who].load, sessions=3)
        async for progress in lifecycle.drain("decode-0"):
            if progress.left == 3:
                assert supervisor.registry["decode-0"].state == State.DRAINING
                host.living[who].load = replace(host.living[who].load, sessions=0)
        assert progress == Progress("decode-0", Phase.ENDED)
        assert host.killed == [who] and host.left == ["decode-0"]
        assert list(supervisor.registry.records) == ["prefill-0", "decode-1"]
        assert not lifecycle.busy("decode-0")

    played(scenario)


def test_what_cannot_be_moved_in_time_is_told_and_the_instance_ends_all_the_same():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        who = supervisor.registry["decode-1"].incarnation
        host.living[who].load = replace(host.living[who].load, sessions=2)
        assert (await steps(lifecycle.drain("decode-1")))[-1] == Progress("decode-1", Phase.ENDED, 0, 2)

    played(scenario)


def test_whoever_stops_looking_leaves_a_drain_to_its_end():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        looking = asyncio.create_task(steps(lifecycle.drain("decode-0")))
        await until(lambda: supervisor.registry["decode-0"].state == State.DRAINING)
        await cancelled(looking)  # type: ignore[arg-type]
        await until(lambda: "decode-0" not in supervisor.registry)

    played(scenario)


def test_a_flipped_instance_keeps_its_life_and_its_next_one_has_the_new_role():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        before = supervisor.registry["decode-0"].life
        await steps(lifecycle.flip("decode-0", "prefill"))
        record = supervisor.registry["decode-0"]
        load = host.living[record.incarnation].load
        assert (record.life, record.state, record.spec.pool) == (before, State.SERVING, "prefill")
        assert (load.prefill_tokens, load.decode_slots, load.draining) == (512, 0, False)
        await host.die(record.incarnation)
        await until(lambda: supervisor.registry["decode-0"].life > before and serving(supervisor) == NAMES)
        record = supervisor.registry["decode-0"]
        assert host.living[record.incarnation].settings.decode_slots == 0
        assert record.spec.home == "decode"
        assert (await steps(lifecycle.flip("decode-0", "mixed")))[-1].phase == Phase.SERVING
        assert pools(supervisor)["decode-0"] == "mixed"

    played(scenario)


def test_a_flip_that_cannot_empty_the_instance_leaves_it_as_it_was():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        record = supervisor.registry["decode-0"]
        instance = host.living[record.incarnation]
        instance.load = replace(instance.load, sessions=1)
        with pytest.raises(Refused, match=r"1 requests could not be moved .* stays in the decode pool"):
            await steps(lifecycle.flip("decode-0", "prefill"))
        assert supervisor.registry["decode-0"] == record
        await until(lambda: not instance.load.draining and instance.load.decode_slots == 64)

    played(scenario)


def test_an_instance_that_is_lost_while_it_is_to_be_flipped_comes_back_in_its_new_role():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        who = supervisor.registry["decode-0"].incarnation
        host.living[who].load = replace(host.living[who].load, sessions=2)
        operation = asyncio.create_task(steps(lifecycle.flip("decode-0", "prefill")))
        await until(lambda: sessions(supervisor, "decode-0") and supervisor.load("decode-0").draining)  # type: ignore[union-attr]
        await host.die(who)
        assert (await operation)[-1] == Progress("decode-0", Phase.SERVING, recovered=2)
        record = supervisor.registry["decode-0"]
        assert record.life > who.life and host.living[record.incarnation].settings.decode_slots == 0

    played(scenario)


def test_a_rolling_restart_replaces_all_and_never_two_at_a_time():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        before = {name: supervisor.registry[name].life for name in NAMES}
        async for _ in lifecycle.restart([]):
            assert len(serving(supervisor)) >= len(NAMES) - 1
        assert serving(supervisor) == NAMES
        assert all(supervisor.registry[name].life > before[name] for name in NAMES)
        assert [record.restarts for record in supervisor.registry.records.values()] == [1, 1, 1]

    played(scenario)


def test_a_rolling_restart_ends_where_an_instance_does_not_come_back():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        host.failures = 1
        with pytest.raises(Refused, match="prefill-0 does not start: no such model"):
            await steps(lifecycle.restart([]))
        assert len(host.killed) <= 2 and all(who.instance == "prefill-0" for who in host.killed)

    played(scenario)


def test_a_pool_grows_and_shrinks_by_those_with_the_least_to_do():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        await steps(lifecycle.scale("decode", 4))
        assert list(supervisor.registry.records) == [*NAMES, "decode-2", "decode-3"]
        assert all(record.state == State.SERVING for record in supervisor.registry.records.values())
        for name in ("decode-0", "decode-2", "decode-3"):
            instance = host.living[supervisor.registry[name].incarnation]
            instance.load = replace(instance.load, sessions=1)
        await until(lambda: all(sessions(supervisor, f"decode-{i}") for i in (0, 2, 3)))
        await steps(lifecycle.scale("decode", 3))
        assert "decode-1" not in supervisor.registry
        assert await steps(lifecycle.scale("decode", 3)) == []
        await steps(lifecycle.scale("mixed", 1))
        assert pools(supervisor)["mixed-0"] == "mixed"

    played(scenario)


def test_an_instance_that_cannot_be_added_is_given_up():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        host.failures = 1
        with pytest.raises(Refused, match="decode-2 does not start: no such model"):
            await steps(lifecycle.scale("decode", 3))
        assert list(supervisor.registry.records) == NAMES and host.left == ["decode-2"]

    played(scenario)


def test_an_instance_without_room_is_waited_for_as_long_as_who_asks_has_patience():
    async def scenario(host: FakeHost, supervisor: Supervisor, _) -> None:
        host.full = True
        lifecycle = Lifecycle(supervisor, replace(CONFIG, start_s=0.2), HANDOVER)
        with pytest.raises(Refused, match=r"decode-2 did not start within 0.2 s .*: there is no room"):
            await steps(lifecycle.scale("decode", 3))
        assert list(supervisor.registry.records) == NAMES and host.left == ["decode-2"]
        growing = asyncio.create_task(steps(lifecycle.grow("decode")))
        await until(lambda: "decode-2" in supervisor.registry)
        await asyncio.sleep(0.5)
        assert supervisor.registry["decode-2"].state == State.PENDING
        await steps(lifecycle.flip("decode-0", "mixed"))  # it is in nobody's way
        host.full = False
        assert (await growing)[-1] == Progress("decode-2", Phase.SERVING)

    played(scenario)


@pytest.mark.parametrize(
    "ask", [lambda cluster: cluster.drain("decode-2"), lambda cluster: cluster.scale("decode", 2)]
)
def test_a_pool_shrinks_by_the_one_without_room_and_who_asked_for_it_is_told(ask):
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        host.full = True
        growing = asyncio.create_task(steps(lifecycle.grow("decode")))
        await until(lambda: "decode-2" in supervisor.registry)
        await until(lambda: supervisor.registry["decode-2"].state == State.PENDING)
        shrinking = asyncio.create_task(steps(ask(lifecycle)))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="decode-2 is being taken back just now"):
            await steps(lifecycle.drain("decode-2"))
        assert (await shrinking)[-1] == Progress("decode-2", Phase.ENDED)
        with pytest.raises(Refused, match="decode-2 was drained before it served"):
            await growing
        assert list(supervisor.registry.records) == NAMES and host.left == ["decode-2"]
        assert not lifecycle.busy("decode-2")

    played(scenario)


@pytest.mark.parametrize(
    "ask, code, text",
    [
        (
            lambda cluster: cluster.drain("x"),
            "NOT_FOUND",
            "no instance x; there are decode-0, decode-1, prefill-0",
        ),
        (lambda cluster: cluster.flip("x", "decode"), "NOT_FOUND", "no instance x"),
        (lambda cluster: cluster.flip("decode-0", "x"), "INVALID_ARGUMENT", "no pool x; there are prefill"),
        (
            lambda cluster: cluster.flip("decode-0", "decode"),
            "FAILED_PRECONDITION",
            "is in the decode pool already",
        ),
        (
            lambda cluster: cluster.flip("prefill-0", "decode"),
            "FAILED_PRECONDITION",
            "the last of the prefill pool",
        ),
        (lambda cluster: cluster.drain("prefill-0"), "FAILED_PRECONDITION", "the last of the prefill pool"),
        (lambda cluster: cluster.restart(["decode-0", "x"]), "NOT_FOUND", "no instance x"),
        (lambda cluster: cluster.scale("x", 2), "INVALID_ARGUMENT", "no pool x"),
        (lambda cluster: cluster.scale("prefill", 0), "FAILED_PRECONDITION", "prefill pool has to keep 1 at"),
        (lambda cluster: cluster.scale("decode", 0), "FAILED_PRECONDITION", "decode pool has to keep 1 at"),
        (lambda cluster: cluster.scale("decode", 1 << 30), "INVALID_ARGUMENT", "at most 256"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once_in_one_sentence(ask, code, text):
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        before = supervisor.registry
        with pytest.raises(Refused, match=text) as refused:
            await steps(ask(lifecycle))
        assert refused.value.code is grpc.StatusCode[code]
        assert supervisor.registry is before and host.killed == []

    played(scenario)


def test_where_nobody_else_decodes_nothing_is_emptied():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        await steps(lifecycle.drain("decode-1"))
        for ask in (
            lifecycle.drain,
            lambda name: lifecycle.restart([name]),
            lambda name: lifecycle.flip(name, "prefill"),
        ):
            with pytest.raises(Refused, match="decode-0 has to stay"):
                await steps(ask("decode-0"))
        await steps(lifecycle.restart(["prefill-0"]))  # those that decode prefill meanwhile

    played(scenario)


def test_what_routers_refuse_takes_nobodys_work_and_goes_first():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        refused = supervisor.registry["decode-0"].incarnation
        supervisor.refusal = lambda who: "other weights" if who == refused else ""
        await until(lambda: all(supervisor.load(name) for name in supervisor.registry.records))
        alive = {view.name: view.alive for view in supervisor.views(0.0)}
        assert alive == {"prefill-0": True, "decode-0": False, "decode-1": True}
        with pytest.raises(Refused, match="decode-1 has to stay"):
            await steps(lifecycle.drain("decode-1"))
        host.living[refused].load = replace(host.living[refused].load, sessions=2)
        await until(lambda: sessions(supervisor, "decode-0") == 2)
        await steps(lifecycle.scale("decode", 1))
        assert list(supervisor.registry.records) == ["prefill-0", "decode-1"]

    played(scenario)


def test_a_rolling_restart_that_cannot_replace_all_replaces_none():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        await steps(lifecycle.drain("decode-1"))
        before, killed = supervisor.registry, list(host.killed)
        with pytest.raises(Refused, match="decode-0 has to stay.*`penstock scale decode 2` first"):
            await steps(lifecycle.restart([]))
        assert supervisor.registry is before and host.killed == killed

    played(scenario)


def test_a_pool_may_be_emptied_where_a_mixed_one_does_its_work():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        await steps(lifecycle.scale("mixed", 1))
        await steps(lifecycle.scale("decode", 0))
        assert list(supervisor.registry.records) == ["prefill-0", "mixed-0"]
        with pytest.raises(Refused, match="mixed pool has to keep 1 at least"):
            await steps(lifecycle.scale("mixed", 0))

    played(scenario)


def test_one_change_of_an_instance_at_a_time():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        who = supervisor.registry["decode-0"].incarnation
        host.living[who].load = replace(host.living[who].load, sessions=1)
        first = asyncio.create_task(steps(lifecycle.drain("decode-0")))
        await until(lambda: lifecycle.busy("decode-0"))
        with pytest.raises(Refused, match="decode-0 is being drained just now"):
            await steps(lifecycle.restart(["decode-0"]))
        with pytest.raises(Refused, match="decode-1 has to stay"):
            await steps(lifecycle.drain("decode-1"))
        await first

    played(scenario)


def test_the_last_of_a_pool_is_told_by_what_the_others_become():
    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        await steps(lifecycle.scale("prefill", 2))
        who = supervisor.registry["prefill-0"].incarnation
        host.living[who].load = replace(host.living[who].load, sessions=1)
        first = asyncio.create_task(steps(lifecycle.drain("prefill-0")))
        await until(lambda: supervisor.registry["prefill-0"].fate)
        with pytest.raises(Refused, match="prefill-1 has to stay: it is the last of the prefill pool"):
            await steps(lifecycle.flip("prefill-1", "decode"))
        await first

    played(scenario)


def test_an_instance_that_drains_by_itself_is_listed_so_and_comes_back():
    """As on SIGTERM."""

    async def scenario(host: FakeHost, supervisor: Supervisor, lifecycle: Lifecycle) -> None:
        who = supervisor.registry["decode-0"].incarnation
        instance = host.living[who]
        await until(lambda: instance.assigned)
        instance.load = replace(instance.load, draining=True)
        await until(lambda: supervisor.registry["decode-0"].state == State.DRAINING)
        await host.die(who)
        await until(lambda: serving(supervisor) == NAMES)
        assert supervisor.registry["decode-0"].life > who.life

    played(scenario)


@pytest.mark.parametrize("pool", ["", "prefill"])
def test_the_next_controller_ends_a_drain_and_a_flip_that_the_last_one_began(pool):
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as first:
            lifecycle = Lifecycle(first, CONFIG, HANDOVER)
            who = first.registry["decode-0"].incarnation
            host.living[who].load = replace(host.living[who].load, sessions=1)
            asked = lifecycle.flip("decode-0", pool) if pool else lifecycle.drain("decode-0")
            following = asyncio.create_task(steps(asked))
            await until(lambda: first.registry["decode-0"].state == State.DRAINING)
            lifecycle._operations["decode-0"].task.cancel()  # it dies
            await asyncio.gather(following, return_exceptions=True)
        second = Supervisor(host, SPECS, HANDOVER, "controller:test", lambda: None)
        after, running = Lifecycle(second, CONFIG, HANDOVER), asyncio.create_task(second.run())
        await after.resume()
        await until(lambda: second.registry["decode-0"].state == State.DRAINING)
        host.living[who].load = replace(host.living[who].load, sessions=0)
        await until(lambda: not after.busy("decode-0"))
        if pool:
            record = second.registry["decode-0"]
            assert (record.spec.pool, record.state, record.fate) == (pool, State.SERVING, "")
        else:
            assert "decode-0" not in second.registry and host.left == ["decode-0"]
        await until(lambda: host.kept == second.registry.remembered())
        await cancelled(running)

    play(scenario)


def test_the_next_controller_knows_what_there_is_to_be_and_how_often_it_was_restarted():
    async def scenario(host: FakeHost) -> None:
        async with supervised(host) as first:
            lifecycle = Lifecycle(first, CONFIG, HANDOVER)
            await steps(lifecycle.restart(["decode-0"]))
            await steps(lifecycle.flip("decode-0", "mixed"))
            await steps(lifecycle.scale("decode", 2))
            await steps(lifecycle.drain("decode-1"))
            registry = first.registry
            await until(lambda: host.kept == registry.remembered())
        second = Supervisor(host, SPECS, HANDOVER, "controller:test", lambda: None)
        task = asyncio.create_task(second.run())
        await until(
            lambda: second.registry.records and all(one.usable for one in second.registry.records.values())
        )
        assert second.registry == registry
        assert second.registry["decode-0"].restarts == 1
        await cancelled(task)

    play(scenario)
