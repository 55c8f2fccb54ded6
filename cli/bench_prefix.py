"""`penstock bench prefix`."""

from __future__ import annotations

import click


@click.command("prefix")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/prefix.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(save: bool, as_json: bool) -> None:
    """Hit rates of the prefix cache on a conversation trace, beside a plain LRU and Belady's bound.

    Then a part of the trace on the embedded checkpoint: prompt tokens computed again, with the cache and without.
    """
    from ..benchmarks.prefix import measure

    report = measure()
    report.show(as_json)
    if save:
        report.save("prefix")
