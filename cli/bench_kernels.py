"""`penstock bench kernels`."""

from __future__ import annotations

import click


@click.command("kernels")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(as_json: bool) -> None:
    """Attention, gather and scatter on this machine's GPU, beside a copy and a matrix product.

    Decode attention as a share of the bandwidth of a copy, at batch 1 to 256 and contexts of 1k to 16k; prefill
    attention as a share of the rate of a matrix product; TB/s of copying blocks.
    """
    from ..benchmarks.kernels import measure

    measure().show(as_json)
