"""The command `penstock`."""

from __future__ import annotations

import sys
from itertools import takewhile

import click

from .. import __version__
from .errors import exit_code
from .lazy import LazyGroup

COMMANDS = {
    "up": ("penstock.cli.up", "Start a cluster on this machine and serve until Ctrl-C."),
    "generate": ("penstock.cli.generate", "Stream a completion to the terminal."),
    "status": ("penstock.cli.status", "Show instances, their load and running requests."),
    "migrate": ("penstock.cli.migrate", "Move a running request to another instance."),
    "explain": ("penstock.cli.explain", "Tell what was decided and done for a request, and why."),
    "drain": ("penstock.cli.drain", "Move everything away from an instance, and end it."),
    "flip": ("penstock.cli.flip", "Give a busy instance the role of another pool."),
    "restart": ("penstock.cli.restart", "Replace instances one by one, under load."),
    "scale": ("penstock.cli.scale", "Bring a pool to a number of instances."),
    "down": ("penstock.cli.down", "Stop the cluster, and reap what a killed one left."),
    "config": ("penstock.cli.config", "Print every setting with its value and meaning."),
    "verify": ("penstock.cli.verify", "Compare a cluster's tokens with transformers, under moves."),
    "chaos": ("penstock.cli.chaos", "Strike a live cluster with faults, and compare every stream."),
    "profile": ("penstock.cli.profile", "Measure what steps and copies cost here, and write a profile."),
    "bench": ("penstock.cli.bench", "Measure one thing; `penstock bench --help` lists them."),
}

HELP = """Serve language models from separate prefill and decode pools, and move requests while they run.

\b
Try:
  penstock up                                in one terminal
  penstock generate "Return the"             in another
  penstock status
  penstock migrate REQUEST_ID decode-1

Commands find the cluster by --address, else PENSTOCK_ADDRESS, else the last `penstock up` on this machine.
Each takes --json for programs; `penstock COMMAND --help` tells more.

\b
Exit codes:
  0    done
  1    it ran, and what it was to do or to show failed: a check, a figure, a move
  2    it could not be done as asked: a mistake in the command, no cluster, or one that refused it
  130  Ctrl-C"""

penstock = LazyGroup(
    "penstock",
    table=COMMANDS,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
click.version_option(__version__, prog_name="penstock")(penstock)


def main() -> None:
    """Run the command line and exit: 0 done, 1 a failed check, 2 the user's error, 130 after Ctrl-C."""
    options = takewhile(lambda word: word != "--", sys.argv[1:])
    sys.exit(
        exit_code(lambda: penstock.main(prog_name="penstock", standalone_mode=False), "--json" in options)
    )


if __name__ == "__main__":
    main()
