"""`penstock bench admission`."""

from __future__ import annotations

import click


@click.command("admission")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/admission.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def command(save: bool, as_json: bool) -> None:
    """Preemptions and tokens/s of the three rules of admission, on a conversation trace's lengths.

    Memory holds 60 % of what the decode slots would take; the rules take turns on the embedded checkpoint.
    """
    from ..benchmarks.admission import measure

    report = measure()
    report.show(as_json)
    if save:
        report.save("admission")
