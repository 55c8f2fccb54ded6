"""`penstock status`: instances, their load, and running requests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..client import Cluster, Instance
from .calls import connected

MIB = 1 << 20
WIDE = 120
"""Columns where the output goes to no terminal."""


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it anew whenever it changes, until Ctrl-C.")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; with --watch one for each change."
)
def command(watch: bool, address: str | None, as_json: bool) -> None:
    """Show the instances with their pools, blocks and load, and every running request.

    \b
    run, wait        sequences with computed KV, and those that wait for their first step
    free/all blocks  KV blocks that can be had (cached ones count, for they give way), of all
    held, leased     blocks of sequences, and those promised to or in doubt after a handover
    hit %            of the prompts' tokens, those found cached
    preempted        how often a sequence had to give its memory back
    beat s           seconds since the instance was last heard
    MiB, restarts    its resident memory, and how often it was started anew
    """
    with connected(address) as client:
        if not watch:
            _show(client.cluster(sessions=True), as_json)
        elif as_json:
            for cluster in client.watch(sessions=True):
                click.echo(json.dumps(asdict(cluster)))
        else:
            _redraw(client.watch(sessions=True))


def _redraw(changes: Iterable[Cluster]) -> None:
    console = _console()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for cluster in changes:
            live.update(_picture(cluster), refresh=True)


def _show(cluster: Cluster, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(cluster)))
    else:
        _console().print(_picture(cluster))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _picture(cluster: Cluster) -> Group:
    routers = ", ".join(router.address for router in cluster.routers)
    title = Text(f"{cluster.cluster}: {cluster.model} at {routers or 'no router'}")
    return Group(title, _instances(cluster), *([_sessions(cluster)] if cluster.sessions else []))


def _instances(cluster: Cluster) -> Table:
    table = Table("instance", "pool", "state", box=SIMPLE, padding=0)
    for name in (
        "run",
        "wait",
        "free/all blocks",
        "held",
        "leased",
        "hit %",
        "preempted",
        "beat s",
        "MiB",
        "restarts",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for instance in cluster.instances:
        table.add_row(instance.name, instance.pool, instance.state, *map(str, _figures(instance)))
    return table


def _figures(instance: Instance) -> tuple[object, ...]:
    blocks, work = instance.blocks, instance.work
    return (
        instance.running,
        instance.waiting,
        f"{blocks.free + blocks.cached}/{blocks.total}",
        blocks.held,
        blocks.leased + blocks.quarantined,
        f"{100 * work.hit_tokens / work.asked_tokens:.0f}" if work.asked_tokens else "-",
        work.preemptions,
        f"{instance.heartbeat_age_s:.2f}",
        instance.rss_bytes // MIB,
        instance.restarts,
    )


def _sessions(cluster: Cluster) -> Table:
    table = Table("request", "choice", "on", box=SIMPLE, padding=0)
    for name in ("prompt tokens", "output tokens"):
        table.add_column(name, justify="right")
    for session in cluster.sessions:
        counts = (str(session.prompt_tokens), str(session.emitted_tokens))
        table.add_row(session.request_id, str(session.choice), session.owner, *counts)
    return table
