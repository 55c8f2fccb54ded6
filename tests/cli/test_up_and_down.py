"""`up`, `status`, `migrate`, `down`: what is wrong is one line, and whatever happens nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cli.up import changes, is_loopback
from penstock.client.cluster import Instance, from_cluster
from penstock.cluster import processes, state
from penstock.cluster.registry import RESTARTED
from penstock.proto import control_pb2

COMMAND = [sys.executable, "-m", "penstock.cli.main"]
WITHIN_S = 120.0


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def penstock(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WITHIN_S)


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The one line that the user sees, and a program that asked for JSON too."""
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    if "--json" in run.args:
        assert json.loads(run.stdout)["error"]["message"] == line.removeprefix("penstock: ")
    else:
        assert run.stdout == ""
    return line


@pytest.mark.parametrize("arguments", [["status"], ["migrate", "x"], ["down"]])
def test_without_a_cluster_it_is_one_line(arguments):
    assert "no cluster is running" in refused(penstock(*arguments)).lower()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["up", "nowhere.yaml"], "nowhere.yaml"),
        (["up", "--prefill", "0"], "cluster.prefill must be at least 1, got 0"),
        (["up", "--decode", "many"], "'many' is not a valid integer"),
        (["up", "--model", "/nowhere"], "no checkpoint folder at /nowhere"),
        (["up", "--transport", "pigeon"], "engine.transport must be one of auto, local, gloo, nccl"),
        (["up", "--port", "99999"], "router.port must be from 0 to 65535"),
        (["migrate", "x", "decode-0", "--to", "decode-1"], "Give INSTANCE or --to, not both."),
        (["migrate", "x", "--mode", "teleport"], "'teleport' is not one of"),
        (["status", "--address", "somewhere"], "'somewhere' is no address"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, words):
    assert words in refused(penstock(*arguments))


def test_a_typo_in_the_configuration_names_the_nearest_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("engine: {kv_block: 5}\n")
    assert f"{path}: no key `engine.kv_block`; did you mean `kv_blocks`?" in refused(
        penstock("up", str(path))
    )


def test_a_port_in_use_is_one_line_and_leaves_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        line = refused(penstock("up", "--port", str(port)))
        assert f"port {port} on 127.0.0.1 cannot be had" in line and "in use" in line
    assert state.records() == []


@pytest.mark.parametrize(
    "host, loopback",
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
    ]
    + [("10.0.0.1", False), ("box", False)],
)
def test_a_host_that_others_reach_is_known(host, loopback):
    assert is_loopback(host) == loopback


def sleeping_up(cluster_id: str, address: str) -> subprocess.Popen:
    """The process of an `up` as `down` knows it: one that is on record, and that SIGTERM ends."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    state.write(
        state.ClusterRecord(
            cluster_id=cluster_id,
            name="penstock",
            pid=process.pid,
            pid_started_at=processes.started_at(process.pid),
            temp_dir="",
            address=address,
            foreground=True,
        )
    )
    return process


@pytest.mark.parametrize(
    "arguments, stopped",
    [
        (["--address", "h:2"], {"h:2"}),
        (["--address", "h:1"], {"h:1"}),
        (["--all"], {"h:1", "h:2", ""}),
        (["--address", "h:9"], None),
        (["--address", "h:1", "--all"], None),
    ],
)
def test_down_stops_the_cluster_that_is_named_or_all(arguments, stopped):
    ups = {address: sleeping_up(f"c{n}", address) for n, address in enumerate(("h:1", "h:2", ""))}
    try:
        for up in ups.values():  # `down` waits until the process has gone, and a zombie has
            assert up.poll() is None
        run = penstock("down", "--json", *arguments)
        if stopped is None:
            assert arguments[1] in refused(run) or "not both" in run.stderr
            assert all(up.poll() is None for up in ups.values())
            return
        assert {said["address"] for said in json.loads(run.stdout)["stopped"]} == stopped
        assert {address for address, up in ups.items() if up.poll() is not None} == stopped
    finally:
        for up in ups.values():
            up.kill()
            up.wait()


@pytest.mark.parametrize("serving, stopped", [(["h:1"], "h:1"), (["h:1", ""], "h:1"), (["h:1", "h:2"], None)])
def test_down_takes_the_only_cluster_that_serves_and_none_of_several(serving, stopped):
    ups = {address: sleeping_up(f"c{n}", address) for n, address in enumerate(serving)}
    try:
        run = penstock("down", "--json")
        if stopped is None:
            assert "2 clusters run here; give --address, one of: h:1, h:2." in refused(run)
        assert {address for address, up in ups.items() if up.poll() is not None} == {stopped} - {None}
    finally:
        for up in ups.values():
            up.kill()
            up.wait()


class Up:
    """A `penstock up` in a process group of its own."""

    def __init__(self, output: Path, port: str):
        self.output = output
        with output.open("w") as out, output.with_suffix(".err").open("w") as err:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--json", "--port", port], stdout=out, stderr=err, start_new_session=True
            )

    def wait_until_it_serves(self) -> dict:
        self.wait_until(lambda: self.output.read_text().endswith("\n"))
        return json.loads(self.output.read_text())

    def wait_until(self, true) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not true():
            assert self.process.poll() is None, self.output.with_suffix(".err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)


def instances(**told: tuple[str, int] | tuple[str, int, str]) -> tuple[Instance, ...]:
    """Of each name its state and life, and the reason of its last one's end."""
    said = []
    for name, (status, life, *reason) in told.items():
        one = control_pb2.Instance(name=name, life=life, restarts=life - 1, reason="".join(reason))
        one.state = control_pb2.InstanceState.Value(f"INSTANCE_STATE_{status.upper()}")
        said.append(one)
    return from_cluster(control_pb2.GetClusterResponse(instances=said)).instances


def test_each_change_of_an_instance_is_told_in_one_line():
    before = instances(
        a=("serving", 1), b=("serving", 1), c=("starting", 2), d=("serving", 1), e=("serving", 1)
    )
    now = instances(
        a=("serving", 1),
        b=("lost", 1, "it is silent"),
        c=("serving", 2),
        d=("draining", 1),
        f=("starting", 1),
        g=("refused", 1, "its weights"),
        h=("pending", 1, "it needs 1 GPU of Ray"),
    )
    lines = [
        "b is lost: it is silent",
        "c serves again",
        "d drains",
        "f starts",
        "g is refused: its weights",
        "h waits for room: it needs 1 GPU of Ray",
        "e has ended",
    ]
    assert list(changes(before, now)) == lines
    assert list(changes(now, now)) == []


def test_what_is_restarted_or_drained_on_purpose_is_not_called_lost():
    for before in ("serving", "draining"):
        restarted = instances(a=("lost", 1, RESTARTED))
        assert list(changes(instances(a=(before, 1)), restarted)) == ["a ends, to start anew"]
    assert list(changes(restarted, instances(a=("starting", 2)))) == ["a starts anew"]
    drained = instances(a=("lost", 1, "its process ended"))
    assert list(changes(instances(a=("draining", 1)), drained)) == ["a has ended"]


def test_an_instance_that_changes_its_pool_is_told_with_the_new_one():
    (before,) = instances(a=("serving", 1))
    after = replace(before, pool="prefill")
    assert list(changes([before], [after])) == ["a is in the prefill pool now"]


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Up]]:
    """Starts one `penstock up` after the other; none of them outlives the test."""
    started: list[Up] = []

    def start(port: str = "0") -> Up:
        started.append(Up(tmp_path / f"up-{len(started)}", port))
        return started[-1]

    yield start
    for up in started:
        up.process.kill()
        up.process.wait()
    for record in state.abandoned():
        state.reap(record)


def test_up_serves_until_down_and_reaps_what_a_killed_one_left(start):
    """Two starts, since a start is what takes long: the first is killed, the second stopped."""
    first = start()
    said = first.wait_until_it_serves()
    assert said["instances"] == ["prefill-0", "decode-0", "decode-1"]
    assert 0 < said["memory_bytes"] < 3 << 30 and said["first_token_s"] > 0
    shown = json.loads(penstock("status", "--json").stdout)
    assert [instance["state"] for instance in shown["instances"]] == ["serving"] * 3
    assert "no request nope runs here (NOT_FOUND)" in refused(penstock("migrate", "nope"))
    port = said["address"].rpartition(":")[2]
    assert "cannot be had" in refused(penstock("up", "--port", port))

    (killed,) = state.records()
    first.process.kill()
    first.process.wait()
    assert "no cluster is running" in refused(penstock("status")).lower()

    second = start(port)  # where the first one's router may still listen
    second.wait_until_it_serves()
    assert processes.marked(killed.cluster_id) == [] and not Path(killed.temp_dir).exists()
    (record,) = state.records()
    assert penstock("down", "--json").returncode == 0
    assert second.process.wait(WITHIN_S) == 0
    assert processes.marked(record.cluster_id) == [] and not Path(record.temp_dir).exists()
    assert state.records() == []


def test_ctrl_c_while_ray_starts_leaves_nothing(start):
    up = start()
    up.wait_until(lambda: state.records())
    (record,) = state.records()
    os.killpg(up.process.pid, signal.SIGINT)  # as a terminal does
    assert up.process.wait(WITHIN_S) == 130
    assert processes.marked(record.cluster_id) == [] and not Path(record.temp_dir).exists()
    assert state.records() == []
