"""Only a controller that hangs is ended by who looks after it: one that starts, answers or is gone is left alone."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from waiting import wait_until

from penstock.cluster import processes, watch
from penstock.cluster.watch import Watch

MARK = "cluster-of-a-test"
SLEEP = "import time; time.sleep(600)"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(watch, "LOOK_S", 0.05)
    monkeypatch.setattr(watch, "ANSWER_S", 0.2)


@contextmanager
def watched(title: str, listens: bool) -> Iterator[subprocess.Popen]:
    """A process of that title while a watch looks at an address where nobody ever answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        command = [title, "-c", SLEEP]
        process = subprocess.Popen(command, executable=sys.executable, env={processes.MARK: MARK})
        try:
            wait_until(lambda: processes.title(process.pid).startswith(title))
            watching = Watch(f"127.0.0.1:{silent.getsockname()[1]}", MARK)
            try:
                yield process
            finally:
                watching.stop()
        finally:
            process.kill()
            process.wait()


def test_a_controller_that_takes_calls_and_answers_none_is_killed():
    with watched("ray::Controller", listens=True) as controller:
        wait_until(lambda: controller.poll() is not None)


@pytest.mark.parametrize("title, listens", [("ray::Controller", False), ("ray::RouterActor", True)])
def test_one_that_does_not_listen_and_whatever_else_runs_are_left_alone(title, listens):
    with watched(title, listens) as process:
        time.sleep(20 * (watch.LOOK_S + watch.ANSWER_S) / 4)
        assert process.poll() is None
