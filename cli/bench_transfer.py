"""`penstock bench transfer`."""

from __future__ import annotations

import click


@click.command("transfer")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Copies behind each figure."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/transfer.json.")
def command(rounds: int, as_json: bool, save: bool) -> None:
    """GB/s of the transports between two processes, for 1 to 1024 scattered KV blocks of 256 KiB.

    Beside them a packing socket, the same socket raw, and a memory copy; bytes are compared after each copy.
    """
    from ..benchmarks.transfer import measure

    report = measure(rounds)
    if save:
        report.save("transfer")
    report.show(as_json)
