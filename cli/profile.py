"""`penstock profile`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click


@click.command("profile")
@click.option(
    "--model", metavar="DIR", help="Folder of a Hugging Face checkpoint. Default: the embedded one."
)
@click.option("--config", metavar="FILE", help="A cluster's YAML; its engine section is what is measured.")
@click.option(
    "--out",
    metavar="FILE",
    default="profile.yaml",
    show_default=True,
    help="The profile; a picture lies beside it.",
)
@click.option(
    "--seconds",
    type=click.IntRange(10, 360),
    default=120,
    show_default=True,
    help="Time for steps; copies take a minute at most.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the shapes.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep figures, profile and picture in benchmarks/results/.")
def command(
    model: str | None, config: str | None, out: str, seconds: int, seed: int, as_json: bool, save: bool
) -> None:
    """Measure what steps and copies cost on this machine, and write a profile.

    Runs prompts, decodes and both over many sizes through the engine, copies KV over each link, and fits the cost model
    that dispatch, admission, planning and simulation use. The errors told are those of shapes held out of the fit.
    """
    path = Path(out)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"--out: {path} cannot be written")
    from rich.console import Console

    from ..benchmarks.figures import RESULTS
    from ..benchmarks.profile import measure
    from ..benchmarks.profile_view import keep, tables
    from ..cluster import config as configuration

    engine = (configuration.load(config) if config else configuration.default()).engine
    measured = measure(replace(engine, model=model) if model else engine, seconds, seed)
    places = [path, RESULTS / "profile.yaml"] if save else [path]
    for place in places:
        keep(measured, place)
    report = measured.report()
    if save:
        report.save("profile")
    if not as_json:
        console = Console()
        for table in tables(measured):
            console.print(table)
        click.echo(measured.scatter().text())
    report.show(as_json)
    click.echo(f"The profile is {path}, its picture {path.with_suffix('.svg')}.", err=True)
