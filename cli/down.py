"""`penstock down`: stops the cluster of `penstock up`."""

from __future__ import annotations

import json
import os
import signal
import time

import click
from rich.console import Console

from ..client.address import VARIABLE
from ..cluster import processes, state
from .calls import demand_one

STOP_S = 30.0
"""How long a running `up` may take to stop before its processes are killed."""


@click.command("down")
@click.option("--address", metavar="HOST:PORT", help="Which cluster; needed where several run.")
@click.option(
    "--all", "every", is_flag=True, help="Every cluster that a `penstock up` of this machine serves."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str | None, every: bool, as_json: bool) -> None:
    """Stop the cluster that runs here, the one that is named, or all, and reap what killed ones left."""
    if address and every:
        raise click.UsageError("Give --address or --all, not both.")
    console = Console(stderr=True, highlight=False)
    asked = state.running() if every else _chosen(address or os.environ.get(VARIABLE))
    if not asked and not state.abandoned():
        raise click.ClickException("no cluster is running")
    for record in asked:
        with console.status(f"stopping {_title(record)}"):
            _stop(record)
        if not as_json:
            click.echo(f"{_title(record)} has stopped")
    reaped = reap_abandoned()
    if as_json:
        stopped = [{"name": record.name, "address": record.address} for record in asked]
        click.echo(json.dumps({"stopped": stopped, "reaped_processes": reaped}))
    if reaped and not as_json:
        click.echo(f"reaped {reaped} processes that a killed `penstock up` left")


def _chosen(address: str | None) -> list[state.ClusterRecord]:
    """The cluster at `address`, else the one that serves or starts; none where none runs.

    `UsageError` where several serve, `ClickException` for an address of no `up`.
    """
    running = state.running()
    if not address:
        demand_one([record.address for record in running if record.address])
        return running[-1:]
    chosen = [record for record in running if address in (record.address, *record.address.split(","))]
    if not chosen:
        raise click.ClickException(f"no `penstock up` of this machine serves at {address}")
    return chosen


def _title(record: state.ClusterRecord) -> str:
    return f"{record.name} at {record.address}" if record.address else f"{record.name}, which was starting,"


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
