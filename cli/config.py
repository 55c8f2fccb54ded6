"""`penstock config`: every setting with its value and meaning."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ..cluster.config import default, load
from ..cluster.settings import as_yaml, settings


@click.command("config")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(config: str | None, as_json: bool) -> None:
    """Print the whole configuration, each key with its value and what it means.

    The values are those of CONFIG, a YAML file, or the defaults. What is printed is such a file itself: a start of
    one's own, `penstock config > cluster.yaml`.
    """
    known = load(config) if config else default()
    if not as_json:
        click.echo(as_yaml(known), nl=False)
        return
    keys = [asdict(key) for _, _, keys in settings(known) for key in keys]
    click.echo(json.dumps({key.pop("path"): key for key in keys}))
