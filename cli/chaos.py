"""`penstock chaos`."""

from __future__ import annotations

import click
from rich.console import Console

from .calls import told
from .errors import CheckFailed


@click.command("chaos")
@click.option("--faults", type=click.IntRange(min=0), default=30, show_default=True, help="How many in all.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws all of it.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Time that the faults are spread over. Default: 5.4 s a fault.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/chaos.json.")
def command(faults: int, seed: int, minutes: float | None, as_json: bool, save: bool) -> None:
    """Strike a live cluster with faults while it serves, and compare every stream with the undisturbed one.

    Starts a cluster of 2 prefill and 3 decode instances, sends it requests in an open loop, and at random points kills,
    stops, cuts off and slows down its instances, loses, doubles and delays their messages, and kills its router, its
    controller and Ray's head. Cutting off and slowing down need root and nft; the head is only stopped where there is
    no redis-server. What cannot be injected is said and counts 0. Exit code 1 where a token differs, comes twice or
    never, a stream hangs, or a block or a process is left.
    """
    from ..benchmarks.chaos import Chaos, chaos

    asked = Chaos(faults=faults, seed=seed, minutes=minutes or max(0.5, 5.4 * faults / 60))
    with told():
        verdict = chaos(asked, Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print)
    if save:
        verdict.report.save("chaos")
    verdict.report.show(as_json)
    if verdict.failures:
        raise CheckFailed("; ".join(verdict.failures))
