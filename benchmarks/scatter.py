"""A picture of points near the diagonal: measured against fitted, both axes logarithmic; as text and as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 64, 24
"""Characters of the text's field."""
SIDE, MARGIN = 420, 60
"""Units of the SVG's field and of the room around it."""


@dataclass(frozen=True, slots=True)
class Point:
    measured_s: float
    fitted_s: float
    series: int
    """Place of its series among the names."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points of several series, each with a name, a mark and a colour."""

    title: str
    points: Sequence[Point]
    names: Sequence[str]
    marks: str = ".o"
    colours: Sequence[str] = ("#9aa7b4", "#c0392b")

    def text(self) -> str:
        """Lines for a terminal; the slashes are where both are equal."""
        low, high = self._ends()
        field = [[" "] * WIDTH for _ in range(HEIGHT)]
        for column in range(WIDTH):
            field[_cell(column / (WIDTH - 1), HEIGHT)][column] = "/"
        for point in sorted(self.points, key=lambda point: point.series):
            row = _cell(_place(point.fitted_s, low, high), HEIGHT)
            field[row][_cell(_place(point.measured_s, low, high), WIDTH)] = self.marks[point.series]
        edges = [_time(high), *[""] * (HEIGHT - 2), _time(low)]
        lines = [f"{edge:>8} |{''.join(row)}" for edge, row in zip(edges, reversed(field), strict=True)]
        bottom = f"{'':8} +{'-' * WIDTH}"
        axis = f"{'':9}{_time(low)}{_time(high):>{WIDTH - len(_time(low)) + 1}}"
        names = ", ".join(f"{mark} {name}" for mark, name in zip(self.marks, self.names, strict=False))
        return "\n".join([f"{self.title} (up: fitted, right: measured; {names})", *lines, bottom, axis])

    def svg(self) -> str:
        """A standalone SVG document."""
        low, high = self._ends()
        size = SIDE + 2 * MARGIN
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" font-family="sans-serif" '
            'font-size="12">',
            f'<rect width="{size}" height="{size}" fill="white"/>',
            f'<text x="{MARGIN}" y="{MARGIN / 2}" font-size="14">{escape(self.title)}</text>',
            *self._grid(low, high),
            f'<path d="M{MARGIN} {MARGIN + SIDE}L{MARGIN + SIDE} {MARGIN}" stroke="#444" fill="none"/>',
        ]
        for point in sorted(self.points, key=lambda point: point.series):
            x, y = _place(point.measured_s, low, high), _place(point.fitted_s, low, high)
            parts.append(
                f'<circle cx="{MARGIN + SIDE * x:.1f}" cy="{MARGIN + SIDE * (1 - y):.1f}" r="3" '
                f'fill="{self.colours[point.series]}"/>'
            )
        for row, name in enumerate(self.names):
            y = MARGIN + 18 + 18 * row
            parts.append(f'<circle cx="{MARGIN + 12}" cy="{y - 4}" r="4" fill="{self.colours[row]}"/>')
            parts.append(f'<text x="{MARGIN + 22}" y="{y}">{escape(name)}</text>')
        parts.append(f'<text x="{size / 2}" y="{size - 12}" text-anchor="middle">measured</text>')
        parts.append(
            f'<text transform="translate(14 {size / 2}) rotate(-90)" text-anchor="middle">fitted</text>'
        )
        return "\n".join([*parts, "</svg>", ""])

    def _grid(self, low: float, high: float) -> list[str]:
        parts = []
        for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
            place = SIDE * _place(10.0**power, low, high)
            x, y, end = MARGIN + place, MARGIN + SIDE - place, MARGIN + SIDE
            parts.append(f'<path d="M{x:.1f} {MARGIN}V{end}M{MARGIN} {y:.1f}H{end}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{end + 16}" text-anchor="middle">{_time(10.0**power)}</text>')
            parts.append(
                f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{_time(10.0**power)}</text>'
            )
        return [
            *parts,
            f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#444"/>',
        ]

    def _ends(self) -> tuple[float, float]:
        """The range of both axes, a little wider than the points."""
        values = [value for point in self.points for value in (point.measured_s, point.fitted_s) if value > 0]
        return min(values, default=1e-3) / 1.2, max(values, default=1.0) * 1.2


def _place(value: float, low: float, high: float) -> float:
    """Where a value lies between the ends, 0 to 1."""
    return math.log(max(value, low) / low) / math.log(high / low)


def _cell(place: float, cells: int) -> int:
    return min(cells - 1, int(place * cells))


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.9999:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
