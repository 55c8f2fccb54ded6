"""What `penstock status` shows: names are whole however narrow the terminal, and a pipe gets each change at once."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rich.console import Console

from penstock.cli import status
from penstock.client import Cluster
from penstock.client.cluster import from_cluster
from penstock.proto import control_pb2
from penstock.proto.control_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server

NAMES = ("prefill-10", "decode-10", "mixed-10")


def cluster(names: tuple[str, ...] = NAMES) -> Cluster:
    told = control_pb2.GetClusterResponse(cluster="penstock", model="tiny")
    for name in names:
        pool = name.split("-")[0]
        one = told.instances.add(name=name, pool=pool, state=control_pb2.INSTANCE_STATE_DRAINING)
        one.blocks.total = one.blocks.free = 12345
    told.sessions.add(request_id="0123456789abcdef" * 2, owner=names[0])
    return from_cluster(told)


def shown(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(status._picture(cluster(), console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_names_pools_and_states_are_whole_in_a_narrow_terminal(width):
    text = shown(width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for name in NAMES:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:3] == [name.split("-")[0], "draining"]


def test_the_last_figures_are_left_out_where_there_is_no_room():
    assert "restarts" in shown(120)
    assert "restarts" not in shown(80) and "12345/12345" in shown(80)


def test_an_instance_that_is_refused_is_told_with_its_reason():
    told = control_pb2.GetClusterResponse()
    reason = "router-0 does not use it: its weights are not those of the other instances"
    told.instances.add(name="decode-0", state=control_pb2.INSTANCE_STATE_REFUSED, reason=reason)
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(status._picture(from_cluster(told), console))
    assert isinstance(console.file, io.StringIO)
    assert f"decode-0 is refused: {reason}\n" in console.file.getvalue()


def test_an_instance_without_room_and_what_pools_did_by_themselves_are_told():
    told = control_pb2.GetClusterResponse()
    told.instances.add(
        name="decode-1",
        state=control_pb2.INSTANCE_STATE_PENDING,
        reason="it needs 1 GPU of Ray, and it is taken",
    )
    change = told.changes.add(at=time.time(), where="controller", session="decode", what="grow")
    change.figures.update({"decode_free_steps": 12.0, "reason": "it is free for 12 steps"})
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(status._picture(from_cluster(told), console))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "decode-1 is pending: it needs 1 GPU of Ray, and it is taken\n" in text
    assert " decode grow decode_free_steps 12  reason it is free for 12 steps\n" in text


def test_a_pipe_gets_each_change_at_once_as_plain_text(capsys):
    def changes():
        for name in ("prefill-0", "decode-0"):
            yield cluster((name,))
            out = capsys.readouterr().out
            assert name in out and "\x1b" not in out

    status._follow(changes(), as_json=False)


class Watched(ControlServiceServicer):
    """A cluster that never changes."""

    def WatchCluster(self, request, context):
        yield control_pb2.WatchClusterResponse(cluster=control_pb2.GetClusterResponse(cluster="penstock"))
        while context.is_active():
            time.sleep(0.05)


def test_a_watch_in_a_pipe_ends_on_sigterm_without_a_word():
    server = grpc.server(ThreadPoolExecutor(1))
    add_ControlServiceServicer_to_server(Watched(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    command = [
        sys.executable,
        "-m",
        "penstock.cli.main",
        "status",
        "--watch",
        "--address",
        f"127.0.0.1:{port}",
    ]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watch.stdout is not None and watch.stdout.readline().startswith("penstock:")
        watch.terminate()
        _, err = watch.communicate(timeout=60)
        assert (watch.returncode, err) == (0, "")
    finally:
        watch.kill()
        server.stop(None)
