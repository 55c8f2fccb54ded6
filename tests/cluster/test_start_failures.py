"""A start that cannot succeed ends soon, says why in one sentence, and leaves nothing."""

import asyncio
import os
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cluster import config as cluster_config
from penstock.cluster import processes, ray_runtime, state
from penstock.cluster.launcher import Cluster
from penstock.cluster.preparation import new_record
from penstock.cluster.router_actor import tried_again
from penstock.router.config import ModelInfo, RouterConfig
from penstock.router.server import RouterServer


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def config(**cluster) -> cluster_config.Config:
    whole = cluster_config.default()
    return replace(
        whole,
        router=replace(whole.router, port=0),
        cluster=replace(whole.cluster, prefill=1, decode=1, **cluster),
    )


@pytest.mark.parametrize(
    "kind, start_s, error, words",
    [
        ("RefusingInstance", 120.0, ValueError, "does not start: this model cannot be served"),
        pytest.param(
            *("DoomedInstance", 120.0, ValueError, "does not start: its process died while it started"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("SleepyInstance", 15.0, TimeoutError, r"did not start within 15 s \(cluster.start_s\)"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_instance_that_does_not_start_ends_the_start(kind, start_s, error, words):
    marks: list[state.ClusterRecord] = []
    with pytest.raises(error, match=words):
        Cluster.start(
            config(start_s=start_s),
            progress=lambda line: marks.extend(state.records()),
            instance=f"stub_instance:{kind}",
        )
    assert marks and processes.marked(marks[0].cluster_id) == []
    assert not Path(marks[0].temp_dir).exists() and state.records() == []


def test_a_router_that_does_not_come_back_is_tried_until_it_does():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            config = RouterConfig(port=taken.getsockname()[1], stop_s=0.5)
            server = RouterServer(config, ModelInfo(name="m", context_tokens=8, vocabulary=9), None)
            first = asyncio.create_task(server.start())
            with pytest.raises(ValueError, match="in use"):
                await first
            trying = asyncio.create_task(tried_again(first, server, pauses_s=(0.01,)))
            await asyncio.sleep(0.1)
            assert not trying.done()
        assert await trying == f"127.0.0.1:{config.port}"
        await server.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    "address, why",
    [("127.0.0.1:1", "Connection refused"), ("nonsense", "is HOST:PORT"), ("ray://there", "is HOST:PORT")],
)
def test_a_ray_cluster_that_does_not_answer_is_one_sentence(address, why):
    with pytest.raises(ValueError, match=f"no Ray cluster can be joined at {address}: .*{why}"):
        Cluster.start(config(ray_address=address))
    assert state.records() == []


@pytest.mark.parametrize("failures", [1, ray_runtime.TRIES])
def test_a_ray_that_does_not_come_up_is_tried_again_and_then_told_of(monkeypatch, failures):
    tried = []

    def init(**options):
        tried.append(subprocess.Popen(["sleep", "600"], env=os.environ))
        if len(tried) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray_runtime.ray, "init", init)
    asked = config()
    record = new_record(asked, False)
    try:
        if failures < ray_runtime.TRIES:
            ray_runtime.start(asked, record)
            assert tried[-1].poll() is None
        else:
            with pytest.raises(ConnectionError, match="Ray does not start: The current node timed out"):
                ray_runtime.start(asked, record)
        assert len(tried) == min(failures + 1, ray_runtime.TRIES)
        assert all(process.wait(10) == -signal.SIGKILL for process in tried[:failures])
    finally:
        state.reap(record)
        for process in tried:
            process.kill()
            process.wait()
