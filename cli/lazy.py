"""A group of commands whose modules are imported when they are called."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module

import click


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to end an error with, of the nearest word that is known; empty where none is near."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean `{near[0]}`?" if near else ""


class LazyGroup(click.Group):
    """Commands from a table {name: (module, help line)}; the module's `command` is the command.

    Listing the group imports none of them, so that help is fast and needs no extra of the package.
    """

    def __init__(self, *args, table: Mapping[str, tuple[str, str]], **kwargs):
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _ = self.table[cmd_name]
        return import_module(module).command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            ctx.fail(f"There is no command `{name}`.{did_you_mean(name, self.table)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])
