"""Where the cluster is: an argument, else PENSTOCK_ADDRESS, else what the last `penstock up` on this machine wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path

VARIABLE = "PENSTOCK_ADDRESS"


def state_file() -> Path:
    """Where `penstock up` writes the address that it serves at."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "penstock" / "up.json"


def write_state(address: str, pid: int) -> None:
    """Say that the process `pid` serves at `address`."""
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"address": address, "pid": pid}))
    draft.replace(path)


def remove_state(pid: int) -> None:
    """Forget the cluster of that process; that of another, started since, stays."""
    if _read_state()[1] == pid:
        state_file().unlink(missing_ok=True)


def resolve(address: str | None = None) -> str:
    """The router's address, host:port. `ValueError` where none is known or it has no port."""
    known = address or os.environ.get(VARIABLE) or _last_up()
    if not known:
        raise ValueError("No cluster is running: start one with `penstock up`, or give its address.")
    host, colon, port = known.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{known!r} is no address: it must be host:port.")
    return known


def _last_up() -> str:
    address, pid = _read_state()
    return address if _lives(pid) else ""


def _read_state() -> tuple[str, int]:
    try:
        state = json.loads(state_file().read_text())
        return str(state["address"]), int(state["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return "", 0


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
