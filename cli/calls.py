"""Calls to a cluster from a command: what the cluster refuses is one line for the user, not a traceback."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import grpc

from ..client import Client, PenstockError
from ..client.address import VARIABLE, serving
from .errors import Failed
from .lazy import did_you_mean


class Seconds(click.ParamType):
    """A finite time above 0."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = click.FLOAT.convert(value, param, ctx)
        if not (math.isfinite(seconds) and seconds > 0):
            self.fail(f"{value} is no time above 0.", param, ctx)
        return seconds


class Pool(click.Choice):
    """The name of a pool; a mistyped one is told with the nearest."""

    def __init__(self) -> None:
        super().__init__(("prefill", "decode", "mixed"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self.choices:
            return value
        hint = did_you_mean(value, self.choices)
        self.fail(f"There is no pool {value!r}; there are {', '.join(self.choices)}.{hint}", param, ctx)


SECONDS = Seconds()
POOL = Pool()


@contextmanager
def told() -> Iterator[None]:
    """Tell the user of a `PenstockError` as of any mistake in the command."""
    try:
        yield
    except PenstockError as error:
        raise Failed(str(error), error.code.name, error.field) from error


@contextmanager
def within(timeout_s: float, late: str) -> Iterator[None]:
    """Tell the user in plain words of a deadline that passes, that of --timeout; `late` is what was not done."""
    try:
        yield
    except PenstockError as error:
        if error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        text = f"{late} within {timeout_s:g} s; --timeout gives it longer"
        raise Failed(text, error.code.name) from error


@contextmanager
def connected(address: str | None, changes: bool = False) -> Iterator[Client]:
    """A client of the cluster at `address`, else of the one that is found; where there are several, say which.

    A command that `changes` a cluster takes none of several: it must be told.
    """
    here = [] if address or os.environ.get(VARIABLE) else serving()
    if changes:
        demand_one([one.address for one in here])
    with told(), Client(address) as client:
        if len(here) > 1:
            others = ", ".join(one.address for one in here[:-1])
            click.echo(
                f"{len(here)} clusters run here: this is the latest, {client.address}; --address: {others}",
                err=True,
            )
        yield client


def demand_one(addresses: Sequence[str]) -> None:
    """`UsageError` where nobody said which of several clusters is meant."""
    if len(addresses) > 1:
        raise click.UsageError(
            f"{len(addresses)} clusters run here; give --address, one of: {', '.join(addresses)}."
        )
