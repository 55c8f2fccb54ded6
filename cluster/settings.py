"""Every key of the configuration with its value, its default and what it means, as the code that declares it says."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import yaml

from .config import Config, default

WIDTH = 118


@dataclass(frozen=True, slots=True)
class Setting:
    """One key; `path` is where it stands, such as `cluster.prefill`."""

    path: str
    value: Any
    default: Any
    meaning: str

    @property
    def lines(self) -> Iterator[str]:
        """As YAML, under its section."""
        section, _, key = self.path.rpartition(".")
        indent = "  " if section else ""
        changed = f" (default: {_scalar(self.default)})" if self.value != self.default else ""
        yield from textwrap.wrap(
            self.meaning + changed, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        yield f"{indent}{key}: {_scalar(self.value)}"


def settings(config: Config) -> Iterator[tuple[str, str, list[Setting]]]:
    """Each section with its meaning and its keys; `cost`, which is none as a rule, is one key without a section."""
    told, usual = meanings(Config), default()
    for section in fields(Config):
        value, before = getattr(config, section.name), getattr(usual, section.name)
        if before is None:
            yield "", "", [Setting(section.name, _plain(value), before, told[section.name])]
            continue
        known = meanings(type(value))
        yield (
            section.name,
            told[section.name],
            [
                Setting(
                    f"{section.name}.{key}",
                    _plain(getattr(value, key)),
                    _plain(getattr(before, key)),
                    known[key],
                )
                for key in (entry.name for entry in fields(value))
            ],
        )


def _plain(value: Any) -> Any:
    """A part of the configuration as its mapping, other values as they are."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def meanings(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        above.target.id: " ".join(below.value.value.split())
        for above, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(above, ast.AnnAssign)
        and isinstance(above.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def as_yaml(config: Config) -> str:
    """The whole configuration as a file that `load` reads, each key with its meaning."""
    lines: list[str] = []
    for section, meaning, keys in settings(config):
        lines += [f"# {meaning}", f"{section}:"] if section else []
        for key in keys:
            lines += key.lines
        lines.append("")
    return "\n".join(lines)


def _scalar(value: Any) -> str:
    """In one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("...\n").strip()
