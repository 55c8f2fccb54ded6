"""`penstock flip`: an instance changes its pool."""

from __future__ import annotations

import click

from .calls import POOL, connected
from .changes import followed


@click.command("flip")
@click.argument("instance")
@click.option("--to", "pool", required=True, type=POOL, help="The pool that it is to be in.")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router; needed where several run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(instance: str, pool: str, address: str | None, as_json: bool) -> None:
    """Give INSTANCE the role of another pool while it is busy; its weights stay loaded.

    On its way to `prefill` its requests move to instances that decode. On its way to `decode` or `mixed` it decodes
    at once, and prefills what it had begun. It keeps the role when it is restarted. Refused where it is the last of
    its pool.

    \b
    penstock flip decode-1 --to prefill
    """
    with connected(address, changes=True) as client:
        followed(client.flip(instance, pool), as_json, instance=instance, to=pool)
