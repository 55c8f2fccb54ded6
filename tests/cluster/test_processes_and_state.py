"""What a killed cluster leaves is found by its mark and ended; nothing else is touched."""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from penstock.cluster import processes, state


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    """A process that bears the mark of cluster `abc`, and its child."""
    program = "import subprocess, sys; subprocess.run(['sleep', '600'])"
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, processes.MARK: "abc"})
    wait_until(lambda: len(processes.marked("abc")) == 2)
    yield process
    for pid in processes.marked("abc"):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def record(**fields) -> state.ClusterRecord:
    return replace(state.own("abc", "c", "", None, True), **fields)


def test_the_mark_is_inherited_and_another_cluster_has_another(sleeper):
    assert sleeper.pid in processes.marked("abc")
    assert processes.marked("ab") == processes.marked("abcd") == []


def test_reaping_ends_children_too_even_stopped_ones(sleeper):
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert len(processes.reap("abc")) == 2
    assert processes.marked("abc") == []
    assert processes.reap("abc") == []


def test_a_process_that_ended_is_not_alive_though_nobody_waited_for_it():
    process = subprocess.Popen(["true"])
    wait_until(lambda: not processes.is_alive(process.pid))
    assert processes.started_at(process.pid) == 0
    process.wait()


def test_memory_counts_shared_pages_once():
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        both, alone = processes.memory([os.getpid(), child]), processes.memory([os.getpid()])
        assert 0 < both.pss_bytes < both.rss_bytes
        assert both.rss_bytes > alone.rss_bytes
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_anonymous_memory_is_neither_a_files_nor_shared():
    before = processes.memory([os.getpid()])
    shared, own = mmap.mmap(-1, 32 << 20), bytearray(os.urandom(1 << 10) * (16 << 10))
    shared.write(b"x" * (32 << 20))
    after = processes.memory([os.getpid()])
    assert 16 << 20 <= after.anonymous_bytes - before.anonymous_bytes < 32 << 20 and len(own) == 16 << 20
    assert after.rss_bytes - before.rss_bytes >= 48 << 20


def test_memory_of_what_has_gone_is_nothing():
    assert processes.memory([2**22 + 1]) == processes.Memory(0, 0)


def test_a_record_is_read_as_it_was_written():
    mine = record(address="127.0.0.1:1")
    state.write(mine)
    assert state.records() == [mine] == state.running() and state.abandoned() == []
    state.remove("abc")
    assert state.records() == state.running() == []


def test_a_pid_that_another_process_has_now_is_not_ours():
    state.write(record(pid_started_at=processes.started_at(os.getpid()) + 1))
    assert state.running() == [] and len(state.abandoned()) == 1


def test_only_an_up_is_what_down_stops():
    state.write(record(foreground=False))
    assert state.running() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cluster_id": 1', json.dumps({"unknown": 1})])
def test_what_cannot_be_read_is_no_record(text):
    state.folder().mkdir(parents=True)
    (state.folder() / "x.json").write_text(text)
    assert state.records() == []


def test_reaping_removes_processes_folder_and_record(sleeper):
    folder = tempfile.mkdtemp(prefix=state.TEMP_PREFIX)
    Path(folder, "log").touch()
    left = record(pid=2**22 + 1, temp_dir=folder)
    state.write(left)
    assert state.abandoned() == [left]
    assert len(state.reap(left)) == 2
    assert not Path(folder).exists() and state.records() == []


def test_no_folder_is_removed_that_we_did_not_make(tmp_path):
    (tmp_path / "precious").mkdir()
    state.reap(record(temp_dir=str(tmp_path / "precious")))
    assert (tmp_path / "precious").exists()


def test_what_an_instance_has_once_it_serves_is_looked_through_for_garbage_no_more():
    program = """
import asyncio, gc
from penstock.cluster.config import InstanceSettings
from penstock.cluster.instance import Instance

class Server:
    def __init__(self, *arguments, **options): ...
    async def start(self): return "here:1"

class Quick(Instance):
    server_class = Server

instance = Quick(InstanceSettings(name="one", life=1, prefill_tokens=64, decode_slots=0))
had = len(gc.get_objects())
assert asyncio.run(instance.start()) == "here:1"
print(had, len(gc.get_objects()))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    had, looked_at = map(int, told.stdout.split())
    assert had > 50_000 and looked_at < had / 20
