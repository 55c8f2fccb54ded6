"""`penstock bench scheduling`."""

from __future__ import annotations

import click
from rich.console import Console

from .calls import SECONDS


@click.command("scheduling")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=6.0,
    show_default=True,
    help="Requests a second.",
)
@click.option("--seconds", type=SECONDS, default=75.0, show_default=True, help="How long each run lasts.")
@click.option("--seed", type=int, default=1, show_default=True, help="Draws arrivals, lengths and prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/scheduling.json.")
def command(rate: float, seconds: float, seed: int, as_json: bool, save: bool) -> None:
    """Latencies and preemptions of rules of dispatch, without and with migration, on 4 mixed instances under bursts.

    In real time, about 10 minutes: the same load for round robin, least loaded, freeness, and freeness with migration;
    then for 1 prefill and 3 decode instances; and a heavier one, in which requests of the high class go beside normal
    ones. Steps are paced to those of a large model on GPUs, as its profile has them.
    """
    from ..benchmarks.scheduling import Plan, measure

    plan = Plan(rate_per_s=rate, seconds=seconds, seed=seed)
    report = measure(plan, Console(stderr=True, highlight=False).print)
    if save:
        report.save("scheduling")
    report.show(as_json)
