"""Ray's head as something that dies: its Redis lives as long as the block, and the next head is the same anew."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.benchmarks import head
from penstock.cluster import processes

MARK = "head-of-a-test"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)", "--redis_address=127.0.0.1"]


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30.0
    while not true():
        assert time.monotonic() < deadline, "this never came to be"
        time.sleep(0.01)


def test_the_next_head_has_the_command_and_the_environment_of_the_last():
    with subprocess.Popen(SLEEPER, env={**os.environ, processes.MARK: MARK}) as old:
        try:
            wait_until(lambda: head.is_kept(old.pid))
            asyncio.run(head.replace(old.pid, 0.05))
            old.wait(10)
            wait_until(lambda: any(map(head.is_kept, processes.marked(MARK))))
            (new,) = processes.marked(MARK)
            assert new != old.pid
            assert processes.title(new) == " ".join(SLEEPER)
        finally:
            processes.reap(MARK)
    assert processes.marked(MARK) == []


def test_what_is_gone_is_not_started_anew():
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessLookupError):
        asyncio.run(head.replace(gone.pid, 0.0))
    assert not head.is_kept(gone.pid)


@pytest.mark.needs("redis-server", "setpriv")
def test_a_redis_is_there_within_and_nothing_of_it_afterwards(tmp_path):
    with head.kept(str(tmp_path)):
        host, port = os.environ["RAY_REDIS_ADDRESS"].split(":")
        with socket.create_connection((host, int(port)), timeout=5) as redis:
            redis.sendall(b"PING\r\n")
            assert redis.recv(16) == b"+PONG\r\n"
        assert port != os.environ["RAY_GCS_SERVER_PORT"]
        assert list(tmp_path.iterdir())
    assert "RAY_REDIS_ADDRESS" not in os.environ and list(Path(tmp_path).iterdir()) == []
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), timeout=5)
