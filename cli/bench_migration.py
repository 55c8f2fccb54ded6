"""`penstock bench migration`."""

from __future__ import annotations

import click
from rich.console import Console


@click.command("migration")
@click.option(
    "--samples", type=click.IntRange(min=1), default=100, show_default=True, help="Live and blocking moves."
)
@click.option(
    "--recomputed", type=click.IntRange(min=1), default=10, show_default=True, help="Recomputed moves."
)
@click.option("--context", "contexts", type=click.IntRange(64, 8192), multiple=True, help="In tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/migration.json.")
def command(samples: int, recomputed: int, contexts: tuple[int, ...], as_json: bool, save: bool) -> None:
    """Downtime of a request that moves between two busy decode instances, at contexts 128, 512, 2048 and 8192.

    Starts a cluster of the embedded checkpoint. Each decode instance runs 8 neighbours of context 512 beside the
    request that moves; the counts are for each context.
    """
    from ..benchmarks.migration import CONTEXTS, Plan, measure

    plan = Plan(contexts=contexts or CONTEXTS, samples=samples, recomputed=recomputed)
    report = measure(plan, Console(stderr=True, highlight=False).print)
    if save:
        report.save("migration")
    report.show(as_json)
