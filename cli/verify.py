"""`penstock verify`."""

from __future__ import annotations

import click
from rich.console import Console

from .calls import told
from .errors import CheckFailed


@click.command("verify")
@click.option(
    "--requests", type=click.IntRange(min=1), default=64, show_default=True, help="How many in all."
)
@click.option(
    "--moves", type=click.IntRange(min=0), default=3, show_default=True, help="Most moves of a request."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws all of it.")
@click.option(
    "--model",
    metavar="DIR",
    help="Folder of a Hugging Face checkpoint. Default: the embedded one and a random one.",
)
@click.option("--checkpoint", type=click.Choice(["embedded", "random"]), help="Only this one of our own.")
@click.option(
    "--transport",
    type=click.Choice(["both", "auto", "local", "gloo"]),
    default="both",
    show_default=True,
    help="How KV travels: over the same host's memory and over gloo, or one way.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@click.option("--save", is_flag=True, help="Also keep the figures in benchmarks/results/verify.json.")
def command(
    requests: int,
    moves: int,
    seed: int,
    model: str | None,
    checkpoint: str | None,
    transport: str,
    as_json: bool,
    save: bool,
) -> None:
    """Compare a cluster's tokens with those of transformers while its requests move.

    Starts a cluster for each checkpoint and transport, and one more for each checkpoint whose KV cache is tiny, sends
    random requests, moves them while they run, cancels some, and counts tokens that differ, come twice or never, and KV
    blocks that are not given back. Exit code 1 where there is any, or where a kind of request never occurred.
    """
    if model and checkpoint:
        raise click.UsageError("Give --model or --checkpoint, not both.")
    from ..benchmarks.trips import CHECKPOINTS, TRANSPORTS, Verification
    from ..benchmarks.verify import verify

    asked = Verification(
        requests=requests,
        moves=moves,
        seed=seed,
        model=model,
        checkpoints=(checkpoint,) if checkpoint else CHECKPOINTS,
        transports=TRANSPORTS if transport == "both" else (transport,),
    )
    with told():
        verdict = verify(asked, Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print)
    if save:
        verdict.report.save("verify")
    verdict.report.show(as_json)
    if verdict.failures:
        raise CheckFailed("; ".join(verdict.failures))
