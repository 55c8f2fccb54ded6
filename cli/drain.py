"""`penstock drain`: take an instance out of a cluster that serves."""

from __future__ import annotations

import click

from .calls import connected
from .changes import followed


@click.command("drain")
@click.argument("instance")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router; needed where several run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(instance: str, address: str | None, as_json: bool) -> None:
    """Move every request away from INSTANCE with its KV, then end it for good.

    It takes nothing new from the first moment on. What could not be moved within cluster.drain_s is prefilled again
    elsewhere: no request is lost either way. Refused where no other instance could take its place; `penstock scale`
    starts another. SIGTERM to an instance's process does the same, but a new life of it follows.

    \b
    penstock status                 names the instances
    penstock drain decode-1
    """
    with connected(address, changes=True) as client:
        followed(client.drain(instance), as_json, instance=instance)
