"""`penstock restart`: new lives for instances."""

from __future__ import annotations

import click

from .calls import connected
from .changes import followed


@click.command("restart")
@click.argument("instances", nargs=-1, metavar="[INSTANCE]...")
@click.option("--rolling", is_flag=True, help="All instances, one after the other.")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router; needed where several run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(instances: tuple[str, ...], rolling: bool, address: str | None, as_json: bool) -> None:
    """Replace instances by their next lives, one by one, while they serve: no request fails.

    Each is drained first (see `penstock drain --help`), and the next is touched only when it serves again. Ctrl-C ends
    this after the instance that it is at. Name the instances, or give --rolling for all of them.

    \b
    penstock restart --rolling
    penstock restart decode-0 decode-1
    """
    if rolling == bool(instances):
        raise click.UsageError("Give --rolling for all instances, or name some.")
    with connected(address, changes=True) as client:
        followed(client.restart(instances), as_json)
