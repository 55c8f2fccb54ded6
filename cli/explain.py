"""`penstock explain`: a request's whole life, each decision with the figures that made it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..client import Explanation
from .calls import SECONDS, connected, within
from .figures import figures_of

WIDE = 140
"""Columns where the output goes to no terminal."""


@click.command("explain")
@click.argument("request_id")
@click.option("--timeout", "timeout_s", type=SECONDS, default=10.0, show_default=True, help="In seconds.")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(request_id: str, timeout_s: float, address: str | None, as_json: bool) -> None:
    """Tell the life of a request, running or ended lately: where it went and why, what that cost.

    Routers say how it was received, dispatched, moved, recovered and ended; instances say how long it queued, its
    chunks, what was cached of it, its transfers and steps. Times are in ms since it was first heard of, by the clock
    of whoever tells. A figure's name ends in its unit.
    """
    with connected(address) as client, within(timeout_s, "the request was not explained"):
        told = client.explain(request_id, timeout_s)
    if as_json:
        click.echo(json.dumps({"request_id": request_id, **asdict(told)}))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(_table(told))
    if told.silent:
        click.echo(f"did not answer: {', '.join(told.silent)}", err=True)


def _table(told: Explanation) -> Table:
    choices = len({decision.session for decision in told.decisions}) > 1
    table = Table(box=SIMPLE, padding=0)
    table.add_column("ms", justify="right", no_wrap=True)
    for name in (*(("choice",) if choices else ()), "where", "what", "figures"):
        table.add_column(name)
    began = told.decisions[0].at
    for decision in told.decisions:
        choice = (decision.session.split("#")[1],) if choices else ()
        table.add_row(
            f"{(decision.at - began) * 1000:.1f}",
            *choice,
            decision.where,
            decision.what,
            figures_of(decision),
        )
    return table
