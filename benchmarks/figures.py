"""Figures that a command reports: values with units, the revision and the machine they were measured on."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import __version__

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KEY = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one run of `command` (the words after `penstock`, with their options) measured."""

    command: str
    figures: Mapping[str, float]
    units: Mapping[str, str]
    """One for each figure; "1" for counts, shares and ratios."""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Least and greatest of the repetitions behind a figure, where there were several."""

    def __post_init__(self) -> None:
        assert self.figures.keys() == self.units.keys(), "every figure has a unit, and every unit a figure"
        assert all(self.units.values()), "a unit is not empty"
        assert self.spread.keys() <= self.figures.keys(), "a spread belongs to a figure"
        assert all(KEY.fullmatch(key) for key in self.figures), "keys are snake_case"
        assert all(math.isfinite(value) for value in self.figures.values()), "figures are finite numbers"
        assert all(low <= high for low, high in self.spread.values()), "a spread is (least, greatest)"

    @classmethod
    def of(cls, command: str, told: Mapping[str, tuple[float, str]], **more: Any) -> Report:
        """From figures that carry their units."""
        figures = {key: value for key, (value, _) in told.items()}
        return cls(
            command=command, figures=figures, units={key: unit for key, (_, unit) in told.items()}, **more
        )

    def as_json(self) -> dict[str, object]:
        return {
            "command": self.command,
            "revision": revision(),
            "machine": machine(),
            "figures": dict(self.figures),
            "units": dict(self.units),
            "spread": {key: list(ends) for key, ends in self.spread.items()},
        }

    def show(self, as_json: bool) -> None:
        """Write to stdout one line of JSON, or a table for people."""
        if as_json:
            click.echo(json.dumps(self.as_json()))
        else:
            Console().print(self._table())

    def save(self, name: str, directory: Path = RESULTS) -> Path:
        """Write the JSON object to `directory`/`name`.json and return that path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.json"
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        return path

    def _table(self) -> Table:
        table = Table("figure", "value", "unit", title=f"penstock {self.command}", caption=machine())
        table.columns[1].justify = "right"
        if self.spread:
            table.add_column("spread", justify="right")
        for key, value in self.figures.items():
            ends = " .. ".join(f"{end:.6g}" for end in self.spread.get(key, ()))
            table.add_row(key, f"{value:.6g}", self.units[key], *([ends] if self.spread else []))
        return table


def quantile(values: Sequence[float], share: float) -> float:
    """The median for a half; else the smallest value that at least that share of them does not exceed."""
    if share == 0.5:
        return median(values)
    return sorted(values)[math.ceil(share * len(values)) - 1]


def revision() -> str:
    """The commit that this package runs from, "-dirty" with changes outside results; else the version."""
    if _git("rev-parse", "--show-toplevel") != str(ROOT):
        return __version__
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{'-dirty' if changes else ''}"


def machine() -> str:
    """The processor, cores of this process, memory, GPUs, system and versions that figures depend on."""
    parts = [
        _processor(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        *_gpus(),
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
    ]
    try:
        parts.append(f"torch {metadata.version('torch')}")
    except metadata.PackageNotFoundError:
        pass  # the base install has none
    return ", ".join(parts)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; the value given advances it by a number of units."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda units: bar.advance(task, units)


def _processor() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _gpus() -> list[str]:
    listing = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    names = listing.splitlines() if listing else []
    return [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]


def _git(*arguments: str) -> str:
    return _output("git", "-C", str(ROOT), *arguments)


def _output(*command: str) -> str:
    """What `command` prints, stripped; empty where it is missing, fails or takes 10 seconds."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
