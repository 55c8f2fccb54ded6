"""`penstock scale`: the size of a pool."""

from __future__ import annotations

import click

from .calls import POOL, connected
from .changes import followed


@click.command("scale")
@click.argument("pool", type=POOL, metavar="POOL")
@click.argument("instances", type=click.IntRange(min=0), metavar="N")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router; needed where several run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(pool: str, instances: int, address: str | None, as_json: bool) -> None:
    """Bring POOL (prefill, decode or mixed) to N instances.

    New ones are placed by Ray; where it has no room they wait for it up to cluster.start_s, and a Ray autoscaler adds
    nodes meanwhile. Those that go are the ones with the least to do, drained one after the other.

    \b
    penstock scale decode 4
    """
    with connected(address, changes=True) as client:
        followed(client.scale(pool, instances), as_json, pool=pool, size=instances)
