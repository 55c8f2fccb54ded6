"""`penstock bench admission`."""

from __future__ import annotations

import click


@click.command("admission")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(as_json: bool) -> None:
    """Preemptions and tokens/s of the three rules of admission, on a conversation trace's lengths.

    Memory holds 60 % of what the decode slots would take; the rules take turns on the embedded checkpoint.
    """
    from ..benchmarks.admission import measure

    measure().show(as_json)
