"""`penstock status`: instances, their load, and running requests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict

import click
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..client import Cluster, Decision, Instance
from .calls import connected
from .figures import figures_of
from .signals import interrupt_once

MIB = 1 << 20
WIDE = 120
"""Columns where the output goes to no terminal."""
ENDLESS = 1 << 16
CHANGES = 6
"""Lines about what pools did by themselves; `--json` has some more."""


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

    Below: what is refused or waits for room, and why; and what pools did by themselves (cluster.autoscale).

    A terminal that is too narrow for all of them leaves out the last ones.
    """
    with connected(address) as client:
        if not watch:
            _show(client.cluster(sessions=True), as_json)
            return
        interrupt_once()
        try:
            _follow(client.watch(sessions=True), as_json)
        except KeyboardInterrupt:
            return


def _follow(changes: Iterable[Cluster], as_json: bool) -> None:
    """Each change in the place of the last on a terminal; elsewhere one after the other, each at once."""
    console = _console()
    if as_json or not console.is_terminal:
        for cluster in changes:
            _show(cluster, as_json)
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for cluster in changes:
            live.update(_picture(cluster, console), refresh=True)


def _show(cluster: Cluster, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(cluster)))
    else:
        console = _console()
        console.print(_picture(cluster, console))


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _picture(cluster: Cluster, console: Console) -> Group:
    routers = ", ".join(router.address for router in cluster.routers)
    title = Text(f"{cluster.cluster}: {cluster.model} at {routers or 'no router'}")
    instances = _instances(cluster, console)
    unused = [
        Text(f"{one.name} is {one.state}: {one.reason}")
        for one in cluster.instances
        if one.state in ("refused", "pending")
    ]
    changes = [Text(_change(change)) for change in cluster.changes[-CHANGES:]]
    return Group(title, instances, *unused, *changes, *([_sessions(cluster)] if cluster.sessions else []))


def _change(change: Decision) -> str:
    """Of a pool by itself, with the figures that decided it."""
    at = time.strftime("%H:%M:%S", time.localtime(change.at))
    return f"{at} {change.session} {change.what} {figures_of(change)}"


def _instances(cluster: Cluster, console: Console) -> Table:
    """As many figures as there is room for: a name is never shortened for one."""
    options = console.options.update(width=ENDLESS)
    for count in range(len(FIGURES), 0, -1):
        table = _table(cluster, count)
        if console.measure(table, options=options).maximum <= console.width:
            return table
    return _table(cluster, 0)


def _table(cluster: Cluster, figures: int) -> Table:
    shown = list(FIGURES.items())[:figures]
    table = Table(box=SIMPLE, padding=0)
    for name in ("instance", "pool", "state"):
        table.add_column(name, overflow="fold")
    for name, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for one in cluster.instances:
        table.add_row(one.name, one.pool, one.state, *(str(figure(one)) for _, figure in shown))
    return table


def _hit_rate(instance: Instance) -> str:
    work = instance.work
    return f"{100 * work.hit_tokens / work.asked_tokens:.0f}" if work.asked_tokens else "-"


FIGURES: dict[str, Callable[[Instance], object]] = {
    "run": lambda one: one.running,
    "wait": lambda one: one.waiting,
    "free/all blocks": lambda one: f"{one.blocks.free + one.blocks.cached}/{one.blocks.total}",
    "held": lambda one: one.blocks.held,
    "leased": lambda one: one.blocks.leased + one.blocks.quarantined,
    "hit %": _hit_rate,
    "preempted": lambda one: one.work.preemptions,
    "beat s": lambda one: f"{one.heartbeat_age_s:.2f}",
    "MiB": lambda one: one.rss_bytes // MIB,
    "restarts": lambda one: one.restarts,
}
"""Columns by their names, the most telling first."""


def _sessions(cluster: Cluster) -> Table:
    table = Table(box=SIMPLE, padding=0)
    for name in ("request", "choice", "on"):
        table.add_column(name, overflow="fold")
    for name in ("prompt tokens", "output tokens"):
        table.add_column(name, justify="right")
    for session in cluster.sessions:
        counts = (str(session.prompt_tokens), str(session.emitted_tokens))
        table.add_row(session.request_id, str(session.choice), session.owner, *counts)
    return table
