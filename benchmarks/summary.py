"""`make results`: tables and pictures of every recorded figure, as `benchmarks/RESULTS.md`.

    python -m penstock.benchmarks.summary

A figure whose name ends in a number (`live_p50_ms_8192`) is one point of a row and of a curve over that number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .figures import RESULTS

PAGE = RESULTS.parent / "RESULTS.md"
NUMBERED = re.compile(r"(?P<name>.+)_(?P<number>\d+)")
HEAD = """# Results

Made by `make results` from `benchmarks/results/`, which the commands below wrote. A spread is the least and the
greatest of the repetitions behind a figure. Compare figures of one run only: the machines are shared and noisy.
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """Figures that share a name but for the number at its end."""

    name: str
    unit: str
    points: Mapping[int, float]


def page(directory: Path) -> str:
    """The Markdown of all results in `directory`; pictures are linked that lie beside them."""
    parts = [HEAD]
    for path in sorted(directory.glob("*.json")):
        parts.append(_section(path, json.loads(path.read_text())))
    return "\n".join(parts)


def _section(path: Path, result: Mapping[str, Any]) -> str:
    lines = [
        f"## {path.stem}",
        "",
        f"`penstock {result['command']}`, revision {result['revision']}, on {result['machine']}.",
        "",
        *_singles(result),
    ]
    for numbers, curves in _by_numbers(result):
        lines += ["", *_table(numbers, curves)]
    pictures = sorted(path.parent.glob(f"{path.stem}*.svg"))
    lines += [f"\n![{picture.stem}](results/{picture.name})" for picture in pictures]
    return "\n".join(lines) + "\n"


def _singles(result: Mapping[str, Any]) -> Iterator[str]:
    names = [name for name in result["figures"] if not NUMBERED.fullmatch(name)]
    if not names:
        return
    yield "| figure | value | unit | spread |"
    yield "|---|---|---|---|"
    for name in names:
        ends = " to ".join(map(_short, result["spread"].get(name, ())))
        yield f"| {name} | {_short(result['figures'][name])} | {result['units'][name]} | {ends} |"


def curves_of(result: Mapping[str, Any]) -> list[Curve]:
    """The numbered figures, joined by name, in the order of the result."""
    points: dict[str, dict[int, float]] = {}
    units: dict[str, str] = {}
    for key, value in result["figures"].items():
        if found := NUMBERED.fullmatch(key):
            points.setdefault(found["name"], {})[int(found["number"])] = value
            units[found["name"]] = result["units"][key]
    return [Curve(name, units[name], points[name]) for name in points]


def _by_numbers(result: Mapping[str, Any]) -> list[tuple[tuple[int, ...], list[Curve]]]:
    """Curves that have the same numbers share a table."""
    tables: dict[tuple[int, ...], list[Curve]] = {}
    for curve in curves_of(result):
        tables.setdefault(tuple(sorted(curve.points)), []).append(curve)
    return list(tables.items())


def _table(numbers: tuple[int, ...], curves: list[Curve]) -> Iterator[str]:
    yield "| figure | unit | " + " | ".join(map(str, numbers)) + " |"
    yield "|---|---" + "|---" * len(numbers) + "|"
    for curve in curves:
        values = " | ".join(_short(curve.points[number]) for number in numbers)
        yield f"| {curve.name} | {curve.unit} | {values} |"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# ---- pictures


def draw(directory: Path) -> None:
    """A picture beside each result that has curves: a panel for each unit, logarithmic over the number."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "penstock"  # the same figures give the same file
    for path in sorted(directory.glob("*.json")):
        panels: dict[str, list[Curve]] = {}
        for curve in curves_of(json.loads(path.read_text())):
            if len(curve.points) > 2 and len(set(curve.points.values())) > 1:
                panels.setdefault(curve.unit, []).append(curve)
        if panels:
            _picture(panels, path.with_suffix(".svg"))


def _picture(panels: Mapping[str, list[Curve]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), squeeze=False)
    for axis, (unit, curves) in zip(axes[0], panels.items(), strict=True):
        for curve in curves:
            axis.plot(*zip(*sorted(curve.points.items()), strict=True), marker="o", label=curve.name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(curves[0].points), map(str, sorted(curves[0].points)))
        if min(value for curve in curves for value in curve.points.values()) > 0:
            axis.set_yscale("log")
        axis.set_ylabel("share or ratio" if unit == "1" else unit)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


@click.command()
def main() -> None:
    """Write RESULTS.md and its pictures from the recorded figures."""
    draw(RESULTS)
    PAGE.write_text(page(RESULTS))
    click.echo(f"{PAGE.name}: {len(list(RESULTS.glob('*.json')))} results")


if __name__ == "__main__":
    main()
