"""`penstock migrate`: move a running request to another instance."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from ..client import Move
from .calls import SECONDS, connected, within
from .errors import CheckFailed


@click.command("migrate")
@click.argument("request_id")
@click.argument("instance", required=False)
@click.option("--to", metavar="INSTANCE", help="The same as the argument INSTANCE.")
@click.option(
    "--mode",
    type=click.Choice(["live", "blocking", "recompute"]),
    default="live",
    show_default=True,
    help="Copy while it runs; pause and copy; or prefill again.",
)
@click.option("--choice", type=int, metavar="N", help="Move one choice only. Default: all of them.")
@click.option("--timeout", "timeout_s", type=SECONDS, default=60.0, show_default=True, help="In seconds.")
@click.option("--address", metavar="HOST:PORT", help="The cluster's router; needed where several run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    request_id: str,
    instance: str | None,
    to: str | None,
    mode: str,
    choice: int | None,
    timeout_s: float,
    address: str | None,
    as_json: bool,
) -> None:
    """Move a running request to INSTANCE, or to the freest other one. Exit code 1 where a move was not done."""
    if instance and to:
        raise click.UsageError("Give INSTANCE or --to, not both.")
    with connected(address, changes=True) as client, within(timeout_s, "it was not known what became of it"):
        moves = client.migrate(request_id, instance or to, choice, mode, timeout_s)
    if as_json:
        click.echo(json.dumps({"request_id": request_id, "moves": [asdict(move) for move in moves]}))
    else:
        for move in moves:
            if move.done:
                click.echo(f"choice {move.choice}: {_line(move)}")
    failed = [move for move in moves if not move.done]
    if failed:
        raise CheckFailed("; ".join(f"choice {move.choice} was not moved: {move.reason}" for move in failed))


def _line(move: Move) -> str:
    return f"{move.source} to {move.destination} in {move.seconds * 1000:.0f} ms"
