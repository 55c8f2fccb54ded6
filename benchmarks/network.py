"""Partitions and slow links between processes of this machine: nftables rules on the ports that they listen on.

Needs root and `nft`. The rules lie in a table of their own, which goes with its last fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

FAMILY = "inet"
LIMIT_S = 10.0


def unavailable() -> str:
    """Why packets cannot be dropped here; empty where they can."""
    if os.geteuid() != 0:
        return "dropping packets needs root"
    if shutil.which("nft") is None:
        return "there is no nft (Debian: nftables)"
    try:
        with rules("penstock_probe", ["tcp dport 9 limit rate over 1 mbytes/second drop"]):
            return ""
    except OSError as error:
        return str(error)


def cut(port: int, way: str) -> list[str]:
    """Rules that drop what goes `to` a port, what comes `from` it, or `both`."""
    assert way in ("to", "from", "both")
    to, back = f"tcp dport {port} drop", f"tcp sport {port} drop"
    return {"to": [to], "from": [back], "both": [to, back]}[way]


def slow(port: int, bytes_per_s: int) -> list[str]:
    """Rules that let no more than so many bytes a second pass to a port, and as many from it."""
    limit = f"limit rate over {max(1, bytes_per_s >> 10)} kbytes/second burst 64 kbytes drop"
    return [f"tcp dport {port} {limit}", f"tcp sport {port} {limit}"]


@contextmanager
def rules(table: str, wanted: list[str]) -> Iterator[None]:
    """The rules stand while the block runs. `OSError` where the system does not take them."""
    lines = [
        f"table {FAMILY} {table} {{",
        "chain input {",
        "type filter hook input priority 0;",
        *wanted,
        "}",
        "}",
    ]
    _nft("-f", "-", said="\n".join(lines) + "\n")
    try:
        yield
    finally:
        _nft("delete", "table", FAMILY, table)


def _nft(*arguments: str, said: str = "") -> None:
    try:
        subprocess.run(
            ["nft", *arguments], input=said, text=True, capture_output=True, check=True, timeout=LIMIT_S
        )
    except subprocess.CalledProcessError as error:
        raise OSError(f"nft refuses: {error.stderr.strip().splitlines()[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError("nft does not answer") from error
