"""Calls to a cluster from a command: what the cluster refuses is one line for the user, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..client import PenstockError


@contextmanager
def told() -> Iterator[None]:
    """Tell the user of a `PenstockError` as of any mistake in the command."""
    try:
        yield
    except PenstockError as error:
        raise click.ClickException(str(error)) from error
