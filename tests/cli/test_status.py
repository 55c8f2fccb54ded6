"""What `penstock status` shows: names are whole however narrow the terminal, and a pipe gets each change at once."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from penstock.cli import status
from penstock.client import Cluster
from penstock.client.cluster import from_cluster
from penstock.proto import control_pb2

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


def test_a_pipe_gets_each_change_at_once_as_plain_text(capsys):
    def changes():
        for name in ("prefill-0", "decode-0"):
            yield cluster((name,))
            out = capsys.readouterr().out
            assert name in out and "\x1b" not in out

    status._follow(changes(), as_json=False)
