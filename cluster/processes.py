"""The processes of a cluster on this machine: each inherits a mark in its environment, by which it is found."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "PENSTOCK_CLUSTER"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Memory of some processes in bytes: with each shared page counted once among them all, and as plain sums.

    `anonymous_bytes` are of the first what is neither a file's nor, as the KV of an instance on a CPU, shared memory.
    """

    pss_bytes: int
    rss_bytes: int
    anonymous_bytes: int = 0


def freeze() -> None:
    """What this process has by now, it keeps: the collector of garbage looks through it no more.

    Beside torch and Ray that took it 0.2 s and more each time, for which every thread stood still: dozens of steps.
    """
    gc.collect()
    gc.freeze()


def marked(cluster_id: str) -> list[int]:
    """Processes of this cluster, the caller left out."""
    mark = f"{MARK}={cluster_id}".encode()
    return [pid for pid in _pids() if pid != os.getpid() and mark in _environment(pid) and is_alive(pid)]


def actors(cluster_id: str, kind: str) -> list[int]:
    """Processes of this cluster that host actors of the class `kind`, which Ray names them by."""
    return [pid for pid in marked(cluster_id) if title(pid).startswith(f"ray::{kind}")]


def is_alive(pid: int) -> bool:
    """It runs, or is stopped; a zombie does not count."""
    return _stat(pid)[0] not in ("", "Z", "X")


def started_at(pid: int) -> int:
    """When the process began, in clock ticks since boot; that and the pid name it for good. 0: there is none."""
    return int(_stat(pid)[19]) if is_alive(pid) else 0


def title(pid: int) -> str:
    """What a process calls itself; empty where there is none."""
    try:
        return (_PROC / str(pid) / "cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def age_s(pid: int) -> float:
    """Seconds since the process began."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_at(pid) / os.sysconf("SC_CLK_TCK")


def memory(pids: Iterable[int]) -> Memory:
    """Memory that these processes have between them; those that have gone have none."""
    pss_kib = rss_kib = anonymous_kib = 0
    for pid in pids:
        sizes = dict(_sizes(pid))
        pss_kib += sizes.get("Pss", 0)
        rss_kib += sizes.get("Rss", 0)
        anonymous_kib += sizes.get("Pss_Anon", 0)
    return Memory(pss_kib << 10, rss_kib << 10, anonymous_kib << 10)


def wait_until_gone(cluster_id: str, timeout_s: float) -> list[int]:
    """Those that are still alive after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (left := marked(cluster_id)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def reap(cluster_id: str, timeout_s: float = 5.0) -> list[int]:
    """Kill what lives of a cluster, and give its pids. `TimeoutError` if something outlives SIGKILL."""
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while left := marked(cluster_id):
        for pid in left:
            kill(pid)
        killed.update(left)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(left)} of cluster {cluster_id} do not end")
        time.sleep(0.02)
    return sorted(killed)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(_PROC) if entry.isdigit())


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or another user's
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; an empty state where there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""]


def _sizes(pid: int) -> Iterator[tuple[str, int]]:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return
    for line in lines[1:]:
        name, _, size = line.partition(":")
        yield name, int(size.split()[0])
