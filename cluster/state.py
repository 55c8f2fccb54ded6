"""What each cluster started from this machine leaves on record, so that it is found again and nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ..client.address import folder
from . import processes

TEMP_PREFIX = "pk-"
"""Names of temporary folders begin so; no other folder is ever removed."""


@dataclass(frozen=True, kw_only=True)
class ClusterRecord:
    """A cluster that `pid` started and has not stopped yet. `ray_address`: the Ray cluster that it joined."""

    cluster_id: str
    name: str
    pid: int
    pid_started_at: int
    temp_dir: str
    ray_address: str | None = None
    address: str = ""
    """The router's, once it serves."""
    foreground: bool = False
    """Started by `penstock up`, and so what `penstock down` stops."""

    @property
    def alive(self) -> bool:
        """The process that started it still runs."""
        return processes.started_at(self.pid) == self.pid_started_at


def write(record: ClusterRecord) -> None:
    """Replaces the cluster's record at once, never by halves."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    path = _path(record.cluster_id)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(asdict(record)))
    draft.replace(path)


def remove(cluster_id: str) -> None:
    _path(cluster_id).unlink(missing_ok=True)


def records() -> list[ClusterRecord]:
    """All on record, the newest last. What cannot be read is no record."""
    found = []
    for path in sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            found.append(ClusterRecord(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found


def abandoned() -> list[ClusterRecord]:
    """Those whose process ended without stopping them."""
    return [record for record in records() if not record.alive]


def running() -> list[ClusterRecord]:
    """The clusters of every `penstock up` that runs: those that only start first, then by age, the newest last."""
    ups = [record for record in records() if record.alive and record.foreground]
    return sorted(ups, key=lambda record: bool(record.address))


def reap(record: ClusterRecord) -> list[int]:
    """End this cluster's processes on this machine, remove its folder and its record; the pids that were killed."""
    killed = processes.reap(record.cluster_id)
    if Path(record.temp_dir).name.startswith(TEMP_PREFIX):
        shutil.rmtree(record.temp_dir, ignore_errors=True)
    remove(record.cluster_id)
    return killed


def own(
    cluster_id: str, name: str, temp_dir: str, ray_address: str | None, foreground: bool
) -> ClusterRecord:
    """The record of a cluster that this process is about to start."""
    pid = os.getpid()
    return ClusterRecord(
        cluster_id=cluster_id,
        name=name,
        pid=pid,
        pid_started_at=processes.started_at(pid),
        temp_dir=temp_dir,
        ray_address=ray_address,
        foreground=foreground,
    )


def _path(cluster_id: str) -> Path:
    return folder() / f"{cluster_id}.json"
