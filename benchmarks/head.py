"""Ray's head as something that can die: a Redis of its own keeps what it knows, and another takes its place.

Needs Debian's `redis-server`. Ray itself starts no head anew that died; on Kubernetes KubeRay does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..cluster.preparation import LOOPBACK, environment, free_port
from ..cluster.state import TEMP_PREFIX

READY_S = 10.0
"""How long a Redis may take to listen."""
LOOK_S = 0.02


def unavailable() -> str:
    """Why a head could not come back with what it knew; empty where it can."""
    return "" if shutil.which("redis-server") else "there is no redis-server (Debian: redis-server)"


@contextmanager
def kept(temp_dir: str) -> Iterator[None]:
    """What a Ray that is started within keeps outlives its head, whose port is the same in every life.

    The Redis ends with the block, or with the thread that entered it; nothing of it is left in `temp_dir`.
    """
    with tempfile.TemporaryDirectory(prefix=TEMP_PREFIX, dir=temp_dir) as folder:
        port = free_port(LOOPBACK)
        redis = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "redis-server", "--bind", LOOPBACK, "--port", str(port)]
            + ["--dir", folder, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        try:
            _await_listener(port)
            known = {
                "RAY_REDIS_ADDRESS": f"{LOOPBACK}:{port}",
                "RAY_GCS_SERVER_PORT": str(free_port(LOOPBACK)),
            }
            with environment(known):
                yield
        finally:
            redis.kill()
            redis.wait()


def is_kept(head: int) -> bool:
    """This head's process has a Redis."""
    return any(word.startswith(b"--redis_address=") for word in _words(head, "cmdline"))


async def replace(head: int, after_s: float) -> None:
    """Kill it, and start the next, which is the same but for what it has to read from its Redis, so much later."""
    command, variables = _words(head, "cmdline"), _words(head, "environ")
    os.kill(head, signal.SIGKILL)
    try:
        await asyncio.sleep(after_s)
    finally:
        _start(command, dict(word.split(b"=", 1) for word in variables if b"=" in word))


def _start(command: list[bytes], variables: dict[bytes, bytes]) -> None:
    """It is the cluster's by its environment, and ends with that."""
    subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _words(pid: int, file: str) -> list[bytes]:
    """Empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def _await_listener(port: int) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=READY_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"redis-server does not listen within {READY_S:g} s") from error
        time.sleep(LOOK_S)
