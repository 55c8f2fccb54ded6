"""`penstock bench engine`."""

from __future__ import annotations

import click
from rich.console import Console


@click.command("engine")
@click.option("--model", metavar="DIR", help="A checkpoint's folder. Default: the embedded one.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns behind each figure."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of both sides."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/engine.json.")
def command(model: str | None, rounds: int, threads: int, as_json: bool, save: bool) -> None:
    """One instance beside transformers' continuous batching and plain generate, on mixed and equal lengths.

    Tokens of output a second and their ratios (`continuous` is begun by each call, as generate_batch does it, and
    `running` before the clock starts); the share of a step that is spent outside the model's forward pass by
    batch, here and for 100 million parameters; how a decode step's time grows with batch and context. On the CPU.
    """
    from ..benchmarks.engine import Plan, measure
    from ..engine.config import EMBEDDED

    plan = Plan(model=model or EMBEDDED, rounds=rounds, threads=threads)
    report = measure(plan, Console(stderr=True, highlight=False).print)
    if save:
        report.save("engine")
    report.show(as_json)
