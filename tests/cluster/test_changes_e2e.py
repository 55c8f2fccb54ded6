"""A real cluster whose instances are drained, flipped, restarted and scaled under load: no stream shows it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from penstock.client import Client, Completion, PenstockError
from penstock.cluster import config as cluster_config
from penstock.cluster import processes
from penstock.cluster.launcher import Cluster

STREAMS = 4
TOKENS = 300


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config = cluster_config.default()
    config = replace(config, router=replace(config.router, port=0))
    with Cluster.start(config) as cluster:
        yield cluster
        record = cluster.record
    assert processes.marked(record.cluster_id) == []


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[tuple[int, ...]]:
    with Client(cluster.address) as client:
        return [complete(client, number).token_ids for number in range(STREAMS)]


def complete(client: Client, number: int) -> Completion:
    prompt = range(40 + number, 100 + number)
    return client.complete(list(prompt), temperature=0.0, max_tokens=TOKENS, ignore_eos=True, timeout_s=120)


def under_load(
    cluster: Cluster, undisturbed: list[tuple[int, ...]], change: Callable[[Client], object]
) -> None:
    """Streams follow each other while it is changed; all are right, none was prefilled again, and no block is lost."""
    changed = threading.Event()

    def stream(number: int) -> list[Completion]:
        with Client(cluster.address) as client:
            whole = [complete(client, number)]
            while not changed.is_set():
                whole.append(complete(client, number))
            return [*whole, complete(client, number)]

    with ThreadPoolExecutor(STREAMS) as threads, Client(cluster.address) as client:
        streams = [threads.submit(stream, number) for number in range(STREAMS)]
        try:
            wait_until(lambda: len(client.cluster(sessions=True).sessions) == STREAMS)
            change(client)
        finally:
            changed.set()
        for number, one in enumerate(streams):
            for whole in one.result():
                assert whole.token_ids == undisturbed[number]
                assert whole.usage.recoveries == 0
        wait_until(lambda: all(map(is_idle, client.cluster().instances)))


def is_idle(instance) -> bool:
    blocks = instance.blocks
    return instance.state == "serving" and blocks.total > 0 and blocks.free + blocks.cached == blocks.total


def test_an_instance_is_drained_and_another_started(cluster, undisturbed):
    def change(client: Client) -> None:
        *_, last = client.drain("decode-0")
        assert (last.done, last.phase, last.recovered) == (True, "ended", 0)
        assert [one.name for one in client.cluster().instances] == ["prefill-0", "decode-1"]
        with pytest.raises(PenstockError, match=r"decode-1 has to stay: .* \(FAILED_PRECONDITION\)"):
            list(client.drain("decode-1"))
        *_, last = client.scale("decode", 2)
        assert (last.instance, last.phase) == ("decode-0", "serving")

    under_load(cluster, undisturbed, change)


def test_an_instance_is_flipped_there_and_back(cluster, undisturbed):
    def change(client: Client) -> None:
        lives = {one.name: one.life for one in client.cluster().instances}
        for pool, slots in (("prefill", 0), ("mixed", 64), ("decode", 64)):
            *_, last = client.flip("decode-1", pool)
            assert (last.phase, last.recovered) == ("serving", 0)
            flipped = next(one for one in client.cluster().instances if one.name == "decode-1")
            assert (flipped.pool, flipped.role.decode_slots) == (pool, slots)
        assert lives == {one.name: one.life for one in client.cluster().instances}

    under_load(cluster, undisturbed, change)


def test_a_rolling_restart_fails_no_request(cluster, undisturbed):
    def change(client: Client) -> None:
        lives = {one.name: one.life for one in client.cluster().instances}
        *_, last = client.restart()
        assert last.done
        after = client.cluster().instances
        assert all(one.state == "serving" and one.life > lives[one.name] for one in after)

    under_load(cluster, undisturbed, change)


def test_sigterm_drains_and_the_next_life_follows(cluster, undisturbed):
    def change(client: Client) -> None:
        before = next(one for one in client.cluster().instances if one.name == "decode-1")
        states = client.watch()
        os.kill(before.pid, signal.SIGTERM)
        for told in states:
            now = next(one for one in told.instances if one.name == "decode-1")
            if now.life > before.life and now.state == "serving":
                break
        states.close()

    under_load(cluster, undisturbed, change)


def test_the_next_controller_goes_on_with_what_there_is(cluster):
    with Client(cluster.address) as client:
        before = client.cluster().instances
        (pid,) = [pid for pid in processes.marked(cluster.record.cluster_id) if "Controller" in title(pid)]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: known(client) == {(one.name, one.life, one.pool, one.restarts) for one in before})
        assert any(one.restarts for one in before)


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")


def known(client: Client) -> set[tuple[str, int, str, int]]:
    """Of instances that serve, if the controller answers."""
    try:
        there = client.cluster().instances
    except PenstockError:
        return set()
    return {(one.name, one.life, one.pool, one.restarts) for one in there if one.state == "serving"}
