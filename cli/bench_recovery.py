"""`penstock bench recovery`."""

from __future__ import annotations

import click
from rich.console import Console


@click.command("recovery")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Faults of each kind."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws streams and targets.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/recovery.json.")
def command(rounds: int, seed: int, as_json: bool, save: bool) -> None:
    """The gap in clients' streams when a process dies or hangs, an instance is drained or flipped, or all are restarted
    one by one, by kind.

    And the tokens computed again for it. Starts a cluster of the embedded checkpoint and sends real signals. Beside the
    gaps of a killed instance look at `reprefill_p50_ms`: what it takes to prefill as many requests at a time. Those of
    a drain, a flip and a rolling restart are told in steps too: a step is the median wait for a token of that stream
    from then on. Each stream is compared with an undisturbed one of the same seed.
    """
    from ..benchmarks.recovery import Plan, measure

    report = measure(Plan(rounds=rounds, seed=seed), Console(stderr=True, highlight=False).print)
    if save:
        report.save("recovery")
    report.show(as_json)
