"""`penstock bench overload`."""

from __future__ import annotations

import click
from rich.console import Console

from .calls import SECONDS


@click.command("overload")
@click.option("--seconds", type=SECONDS, default=60.0, show_default=True, help="How long the overload lasts.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws arrivals, lengths and prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/overload.json.")
def command(seconds: float, seed: int, as_json: bool, save: bool) -> None:
    """Three times the load that a cluster can serve: attainment of the accepted, how soon the others are refused.

    Starts a cluster of the embedded checkpoint and measures its capacity first. Then memory, and how long after the
    load's end requests are served as they should be again; limits are multiples of what a request takes alone.
    """
    from ..benchmarks.overload import Plan, measure

    report = measure(Plan(seconds=seconds, seed=seed), Console(stderr=True, highlight=False).print)
    if save:
        report.save("overload")
    report.show(as_json)
