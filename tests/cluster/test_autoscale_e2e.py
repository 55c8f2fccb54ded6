"""A real cluster that grows, drains and flips by itself under load: no request fails, and no stream shows it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import ray
from click.testing import CliRunner
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from waiting import wait_until

from penstock.cli import status
from penstock.client import Client, Completion, Decision, Instance, PenstockError
from penstock.cluster import config as cluster_config
from penstock.cluster import processes
from penstock.cluster.launcher import Cluster
from penstock.policy.autoscale import AutoscaleConfig, PoolLimits

BLOCKS = 512
STREAMS = 8
PROMPTS = 4
LONG_OUTPUTS = (60, 300)
LONG_PROMPTS = (600, 2)
"""Tokens of prompt and output."""


def started(prefill: int, decode: int, **autoscale) -> Cluster:
    whole = cluster_config.default()
    pool_tokens = BLOCKS * whole.engine.block_size
    scaling = AutoscaleConfig(
        limits={"prefill": PoolLimits(most=2), "decode": PoolLimits(most=2)},
        low_steps=pool_tokens / 6,
        high_steps=pool_tokens / 2,
        busy_steps=4.0,
        short_s=1.0,
        idle_s=5.0,
        cooldown_s=2.0,
    )
    return Cluster.start(
        replace(
            whole,
            router=replace(whole.router, port=0),
            engine=replace(whole.engine, kv_blocks=BLOCKS, prefix_cache=False),
            cluster=replace(
                whole.cluster, prefill=prefill, decode=decode, autoscale=replace(scaling, **autoscale)
            ),
        )
    )


@contextmanager
def watched(cluster: Cluster) -> Iterator[tuple[Cluster, Client]]:
    """With a client of the controller; nothing is left of the cluster, and before that no place without an instance."""
    with cluster:
        with Client(cluster.controller_address) as client:
            yield cluster, client
            wait_until(lambda: places() == {one.name for one in client.cluster().instances})
            wait_until(
                lambda: len(processes.actors(cluster.record.cluster_id, "InstanceActor")) == len(places())
            )
    assert processes.marked(cluster.record.cluster_id) == []


def places() -> set[str]:
    groups = placement_group_table().values()
    return {one["name"].partition("/")[2] for one in groups if one["name"] and one["state"] != "REMOVED"}


def complete(client: Client, number: int, prompt: int, tokens: int) -> Completion:
    ids = [(7 * number + 3 * place) % 500 for place in range(prompt)]
    return client.complete(ids, temperature=0.0, max_tokens=tokens, ignore_eos=True, timeout_s=120)


def alone(cluster: Cluster, shape: tuple[int, int]) -> list[tuple[int, ...]]:
    with Client(cluster.address) as client:
        return [complete(client, number, *shape).token_ids for number in range(PROMPTS)]


@contextmanager
def loaded(cluster: Cluster, shape: tuple[int, int], right: list[tuple[int, ...]]) -> Iterator[None]:
    """Streams follow each other; all are as they are alone, and none was prefilled again."""
    over = threading.Event()

    def stream(number: int) -> list[Completion]:
        whole = []
        with Client(cluster.address) as client:
            while not over.is_set():
                whole.append(complete(client, number % PROMPTS, *shape))
        return whole

    with ThreadPoolExecutor(STREAMS) as threads:
        streams = [threads.submit(stream, number) for number in range(STREAMS)]
        try:
            yield
        finally:
            over.set()
        for number, one in enumerate(streams):
            for whole in one.result():
                assert whole.token_ids == right[number % PROMPTS]
                assert whole.usage.recoveries == 0


def pool(client: Client, name: str) -> list[Instance]:
    """Those that serve in it; none while the controller is away."""
    with suppress(PenstockError):
        return [one for one in client.cluster().instances if (one.pool, one.state) == (name, "serving")]
    return []


def state(client: Client, name: str) -> str:
    with suppress(PenstockError):
        return next((one.state for one in client.cluster().instances if one.name == name), "gone")
    return "unknown"


def owners(client: Client) -> set[str]:
    return {one.owner for one in client.cluster(sessions=True).sessions}


def done(client: Client) -> list[Decision]:
    return [change for change in client.cluster().changes if change.what.endswith("_done")]


def test_load_grows_a_pool_a_shift_of_its_shape_flips_instances_and_its_end_drains_them():
    with watched(started(prefill=1, decode=1)) as (cluster, client):
        outputs, prompts = alone(cluster, LONG_OUTPUTS), alone(cluster, LONG_PROMPTS)
        with loaded(cluster, LONG_OUTPUTS, outputs):
            wait_until(lambda: owners(client) >= {"decode-0", "decode-1"})
        with loaded(cluster, LONG_PROMPTS, prompts):
            wait_until(lambda: len(pool(client, "prefill")) == 2)
        with loaded(cluster, LONG_OUTPUTS, outputs):
            wait_until(lambda: len(pool(client, "decode")) == 2)
        wait_until(lambda: len(pool(client, "decode")) == 1)
        wait_until(lambda: [change.what for change in done(client)][-1] == "drain_done")
        assert [(change.session, change.what, change.figures.get("to")) for change in done(client)] == [
            ("decode", "grow_done", None),
            ("decode", "flip_done", "prefill"),
            ("prefill", "flip_done", "decode"),
            ("decode", "drain_done", None),
        ]
        grown, *_ = client.cluster().changes
        assert grown.what == "grow" and "free for" in str(grown.figures["reason"])
        assert 0 < grown.figures["decode_free_steps"] < BLOCKS * 16 / 6
        assert all(one.blocks.free + one.blocks.cached == BLOCKS for one in client.cluster().instances)


@pytest.mark.slow
def test_an_instance_without_room_waits_is_told_of_blocks_nobody_and_is_taken_back_first():
    with watched(started(prefill=1, decode=1)) as (cluster, client):
        outputs, prompts = alone(cluster, LONG_OUTPUTS), alone(cluster, LONG_PROMPTS)
        with ray_filled(), loaded(cluster, LONG_OUTPUTS, outputs):
            wait_until(lambda: state(client, "decode-1") == "pending")
            reason = next(one.reason for one in client.cluster().instances if one.name == "decode-1")
            assert reason == "it needs 0.1 CPU of Ray, and it is taken"
            shown = CliRunner().invoke(status.command, ["--address", cluster.address]).output
            assert f"decode-1 is pending: {reason}" in shown and "decode grow" in shown
        with ray_filled():
            with loaded(cluster, LONG_PROMPTS, prompts):
                wait_until(lambda: state(client, "prefill-1") == "pending")
            wait_until(lambda: places() == {"prefill-0", "decode-0"})
        with loaded(cluster, LONG_OUTPUTS, outputs):
            with ray_filled():
                wait_until(lambda: state(client, "decode-1") == "pending")
            wait_until(lambda: "decode-1" in owners(client))


@contextmanager
def ray_filled() -> Iterator[None]:
    """Nothing more finds room."""
    wait_until(lambda: ray.available_resources()["CPU"] > 1)
    filler = placement_group([{"CPU": ray.available_resources()["CPU"] - 0.05}])
    assert filler.wait(10)
    try:
        yield
    finally:
        remove_placement_group(filler)


@pytest.mark.slow
def test_a_controller_that_dies_while_a_pool_grows_has_a_successor_that_grows_it_by_one():
    limits = {"prefill": PoolLimits(most=1), "decode": PoolLimits(most=3)}
    with watched(started(prefill=1, decode=1, limits=limits)) as (cluster, client):
        outputs = alone(cluster, LONG_OUTPUTS)
        with loaded(cluster, LONG_OUTPUTS, outputs):
            wait_until(lambda: state(client, "decode-1") == "starting")
            kill_controller(cluster)
            wait_until(lambda: state(client, "decode-1") == "serving")
            wait_until(lambda: "decode-1" in owners(client))
            for _ in range(60):
                time.sleep(0.1)
                assert state(client, "decode-2") == "gone"


@pytest.mark.slow
def test_a_controller_that_dies_amid_a_drain_or_a_flip_has_a_successor_that_ends_it():
    with watched(started(prefill=1, decode=3, limits={})) as (cluster, client):
        outputs = alone(cluster, LONG_OUTPUTS)
        with loaded(cluster, LONG_OUTPUTS, outputs), ThreadPoolExecutor() as threads:
            wait_until(lambda: len(owners(client)) == 3)
            flip = threads.submit(lambda: list(client.flip("decode-2", "prefill")))
            wait_until(lambda: state(client, "decode-2") == "draining")
            kill_controller(cluster)
            wait_until(lambda: len(pool(client, "prefill")) == 2)
            drain = threads.submit(lambda: list(client.drain("decode-1")))
            wait_until(lambda: state(client, "decode-1") == "draining")
            kill_controller(cluster)
            wait_until(lambda: state(client, "decode-1") == "gone")
            for asked in (flip, drain):
                assert isinstance(asked.exception(), PenstockError)
        assert {one.name: one.pool for one in client.cluster().instances} == {
            "prefill-0": "prefill",
            "decode-0": "decode",
            "decode-2": "prefill",
        }


def kill_controller(cluster: Cluster) -> None:
    (pid,) = processes.actors(cluster.record.cluster_id, "Controller")
    processes.kill(pid)
