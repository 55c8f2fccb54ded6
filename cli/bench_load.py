"""`penstock bench load`."""

from __future__ import annotations

import click
from rich.console import Console

from .calls import SECONDS, told

POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command("load")
@click.option("--address", metavar="ADDR", help="A cluster that runs. Default: one is started for this.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="Of the cluster that is started."
)
@click.option(
    "--workload",
    default="azure",
    show_default=True,
    metavar="NAME|FILE",
    help="azure or mooncake, slices that lie here; or a trace: Azure, Mooncake, BurstGPT or JSON lines.",
)
@click.option("--rate", type=POSITIVE, default=1.0, show_default=True, help="Requests a second, in the mean.")
@click.option("--seconds", type=SECONDS, default=30.0, show_default=True, help="How long requests are sent.")
@click.option("--scale-prompt", type=POSITIVE, default=1.0, help="Prompts so many times as long.")
@click.option("--scale-output", type=POSITIVE, default=1.0, help="Outputs so many times as long.")
@click.option("--ttft", type=SECONDS, default=2.0, show_default=True, help="Longest time to the first token.")
@click.option(
    "--tpot", type=SECONDS, default=0.1, show_default=True, help="Longest mean time between tokens."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the tokens of prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/load.json.")
def command(
    address: str | None,
    config: str | None,
    workload: str,
    rate: float,
    seconds: float,
    scale_prompt: float,
    scale_output: float,
    ttft: float,
    tpot: float,
    seed: int,
    as_json: bool,
    save: bool,
) -> None:
    """Replay a workload against a cluster, open loop: each request is sent when it is due, however slow the answers.

    Latencies as the clients felt them, from the time at which each request was due, and attainment: the share of the
    requests that met --ttft and --tpot both. `late_p99_ms` and `fell_behind` tell whether the generator kept up.
    Requests too long for the model are left out and counted.
    """
    if address and config:
        raise click.UsageError("--config is of a cluster that is started: give it or --address.")
    from ..benchmarks.replay import Plan, measure
    from ..cluster.config import default, load
    from ..policy.fairness import Slo

    plan = Plan(
        workload=workload,
        rate_per_s=rate,
        seconds=seconds,
        slo=Slo(ttft_s=ttft, tpot_s=tpot),
        scale_prompt=scale_prompt,
        scale_output=scale_output,
        seed=seed,
    )
    with told():
        report = measure(
            plan, address, load(config) if config else default(), Console(stderr=True, highlight=False).print
        )
    if save:
        report.save("load")
    report.show(as_json)
