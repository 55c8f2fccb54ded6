"""`penstock status`: instances, their load, and running requests."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..client import Cluster, Instance
from .calls import connected

MIB = 1 << 20
WIDE = 120
"""Columns where the output goes to no terminal."""


@click.command("status")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str | None, as_json: bool) -> None:
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
        cluster = client.cluster(sessions=True)
    if as_json:
        click.echo(json.dumps(asdict(cluster)))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    routers = ", ".join(router.address for router in cluster.routers)
    console.print(f"{cluster.cluster}: {cluster.model} at {routers or 'no router'}")
    console.print(_instances(cluster))
    if cluster.sessions:
        console.print(_sessions(cluster))


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
