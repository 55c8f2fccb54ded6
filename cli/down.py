"""`penstock down`: stops the cluster of `penstock up`."""

from __future__ import annotations

import json
import os
import signal
import time

import click
from rich.console import Console

from ..cluster import processes, state

STOP_S = 30.0
"""How long a running `up` may take to stop before its processes are killed."""


@click.command("down")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Stop the cluster of the last `penstock up`, and reap what killed ones left."""
    console = Console(stderr=True, highlight=False)
    running = state.running()
    if running is None and not state.abandoned():
        raise click.ClickException("no cluster is running")
    if running is not None:
        with console.status(f"stopping {running.name} at {running.address}"):
            _stop(running)
    reaped = reap_abandoned()
    if as_json:
        stopped = running and running.name
        click.echo(json.dumps({"stopped": stopped, "reaped_processes": reaped}))
    elif running is not None:
        click.echo(f"{running.name} has stopped")
    if reaped and not as_json:
        click.echo(f"reaped {reaped} processes that a killed `penstock up` left")


def reap_abandoned() -> int:
    """How many processes were ended of clusters that were left behind."""
    left = state.abandoned()
    if any(record.ray_address for record in left):
        from ..cluster import launcher  # they run on a Ray cluster that goes on; only Ray can end them

        return launcher.reap_abandoned()
    return sum(len(state.reap(record)) for record in left)


def _stop(record: state.ClusterRecord) -> None:
    """Ask `up` to stop, and kill it if it does not; what it leaves then is reaped as abandoned."""
    os.kill(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while record.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    if record.alive:
        processes.kill(record.pid)
        while record.alive:
            time.sleep(0.01)
