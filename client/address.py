"""Where the cluster is: an argument, else PENSTOCK_ADDRESS, else the latest one that `penstock up` serves from here."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PENSTOCK_ADDRESS"


@dataclass(frozen=True, slots=True)
class Serving:
    """A cluster of a `penstock up` on this machine: its name, its router's address, and the process that serves it."""

    name: str
    address: str
    pid: int


def folder() -> Path:
    """Where each cluster that was started on this machine has its record, as long as it is not stopped."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "penstock" / "clusters"


def serving() -> list[Serving]:
    """Those that a living `penstock up` serves now, the latest last."""
    found = []
    for path in folder().glob("*.json"):
        try:
            said, written = json.loads(path.read_text()), path.stat().st_mtime_ns
            here = Serving(str(said["name"]), str(said["address"]), int(said["pid"]))
            if said["foreground"] and here.address and _lives(here.pid):
                found.append((written, here))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return [here for _, here in sorted(found, key=lambda pair: pair[0])]


def resolve(address: str | None = None) -> str:
    """The router's address, host:port, or those of several with commas between.

    `ValueError` where none is known or one has no port.
    """
    known = address or os.environ.get(VARIABLE) or next((one.address for one in reversed(serving())), "")
    if not known:
        raise ValueError("No cluster is running: start one with `penstock up`, or give its address.")
    for one in known.split(","):
        host, colon, port = one.rpartition(":")
        if not (host and host.split() == [host] and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{one!r} is no address: it must be host:port.")
    return known


def target(address: str) -> str:
    """What gRPC is to connect to: of several addresses the first that answers, and the next when that is lost.

    `OSError` where the name of one of several hosts means nothing.
    """
    if "," not in address:
        return address
    pairs = [one.rpartition(":")[::2] for one in address.split(",")]
    return "ipv4:" + ",".join(f"{socket.gethostbyname(host)}:{port}" for host, port in pairs)


def _lives(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, as another user
    return True
