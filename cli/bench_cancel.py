"""`penstock bench cancel`."""

from __future__ import annotations

import click
from rich.console import Console


@click.command("cancel")
@click.option(
    "--samples", type=click.IntRange(min=1), default=50, show_default=True, help="Requests of each state."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the moments of the cancels.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/cancel.json.")
def command(samples: int, seed: int, as_json: bool, save: bool) -> None:
    """From a client's cancel until every block is free, for requests queued, prefilling, transferring and decoding.

    Starts a cluster of the embedded checkpoint. `limit_ms_STATE` is the longest chunk or step of this run and 50 ms;
    `next_ttft_ratio` compares the request that follows a cancelled one with one that nothing came before.
    """
    from ..benchmarks.cancel import Plan, measure

    report = measure(Plan(samples=samples, seed=seed), Console(stderr=True, highlight=False).print)
    if save:
        report.save("cancel")
    report.show(as_json)
