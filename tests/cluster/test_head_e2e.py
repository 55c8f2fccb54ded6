"""Ray's head dies under a real cluster: what is served goes on, and once another head is there so does all the rest."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from penstock.benchmarks import head
from penstock.client import Client
from penstock.cluster import config as cluster_config
from penstock.cluster import processes
from penstock.cluster.launcher import Cluster

AWAY_S = 4.0
PROMPT = list(range(40, 100))
TOKENS = 300


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    config = cluster_config.default()
    config = replace(config, router=replace(config.router, port=0))
    before = set(Path(config.cluster.temp_dir).glob("pk-*"))
    with head.kept(config.cluster.temp_dir), Cluster.start(config) as cluster:
        yield cluster
        record = cluster.record
    assert processes.marked(record.cluster_id) == []
    assert not set(Path(config.cluster.temp_dir).glob("pk-*")) - before


def heads(cluster: Cluster) -> list[int]:
    marked = processes.marked(cluster.record.cluster_id)
    return [pid for pid in marked if "gcs_server" in processes.title(pid)]


def tokens(client: Client) -> tuple[int, ...]:
    whole = client.complete(PROMPT, temperature=0.0, max_tokens=TOKENS, ignore_eos=True, timeout_s=120)
    return whole.token_ids


@pytest.mark.needs("redis-server", "setpriv")
def test_a_cluster_outlives_rays_head_and_an_instance_that_dies_meanwhile_is_replaced(cluster):
    (old,) = heads(cluster)
    assert head.is_kept(old)
    before = {one.name: one.life for one in cluster.instances()}
    with Client(cluster.address) as client:
        undisturbed = tokens(client)
        away = threading.Thread(target=lambda: asyncio.run(head.replace(old, AWAY_S)))
        away.start()
        wait_until(lambda: heads(cluster) == [])
        assert tokens(client) == undisturbed
        os.kill(next(one.pid for one in cluster.instances() if one.name == "decode-0"), signal.SIGKILL)
        assert tokens(client) == undisturbed
        assert {one.name for one in cluster.instances() if one.life != before[one.name]} <= {"decode-0"}
        away.join()
        wait_until(lambda: heads(cluster) not in ([], [old]))
        wait_until(lambda: all(one.state == "serving" for one in cluster.instances()))
        assert tokens(client) == undisturbed
    after = {one.name: one.life for one in cluster.instances()}
    assert [name for name in after if after[name] != before[name]] == ["decode-0"]


@pytest.mark.slow
@pytest.mark.needs("redis-server", "setpriv")
@pytest.mark.parametrize("later_s", [0.15, 0.3, 0.45])
def test_an_instance_whose_place_the_dying_head_gave_away_gets_another(cluster, later_s):
    """Between its node's word that a worker is there and its own note of it, the head dies."""
    (old,) = heads(cluster)
    before = {one.name: one.life for one in cluster.instances()}
    os.kill(next(one.pid for one in cluster.instances() if one.name == "decode-0"), signal.SIGKILL)
    time.sleep(later_s)
    asyncio.run(head.replace(old, AWAY_S))
    wait_until(lambda: all(one.state == "serving" for one in cluster.instances()))
    after = {one.name: one.life for one in cluster.instances()}
    assert [name for name in after if after[name] != before[name]] == ["decode-0"]
