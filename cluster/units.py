"""Quantities with their unit, as people write them: `5.37 ms`, `2 GiB`, `357 GB/s`. A field's name tells what it is."""

from __future__ import annotations

import re

_SIZES = {"B": 1.0}
_SIZES |= {f"{letter}B": 1e3 ** (i + 1) for i, letter in enumerate("KMGT")}
_SIZES |= {f"{letter}iB": 1024.0 ** (i + 1) for i, letter in enumerate("KMGT")}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12, "min": 60.0, "h": 3600.0}
_RATES = {f"{unit}/s": factor for unit, factor in _SIZES.items()}

_QUANTITY = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z/]+)")

_KINDS = (
    ("_bytes_per_s", "a rate such as `36 GB/s`", _RATES),
    ("_bytes", "a size such as `2 GiB`", _SIZES),
    ("_s", "a time such as `5.4 ms`", _TIMES),
)
"""By the end of a field's name; the longer end first."""

_WRITTEN = {
    "_bytes_per_s": ("GB/s", "MB/s", "B/s"),
    "_bytes": ("B",),
    "_s": ("s", "ms", "us", "ns", "ps"),
}
"""Units that `write` uses, larger ones first."""


def has_unit(name: str) -> bool:
    """Whether the name of a field tells a unit."""
    return name.endswith(tuple(end for end, _, _ in _KINDS))


def read(text: str, where: str) -> float:
    """The number that `text` means in the unit that the name `where` ends with; `ValueError` where it means none."""
    wanted, units = next((wanted, units) for end, wanted, units in _KINDS if where.endswith(end))
    found = _QUANTITY.fullmatch(text.strip())
    if not found or found[2] not in units:
        raise ValueError(f"{where} must be {wanted} ({', '.join(units)}), got {text!r}")
    return float(found[1]) * units[found[2]]


def write(value: float, name: str) -> str | float:
    """`value` in the largest unit that leaves at least 1 of it, six digits; a number where `name` has no unit."""
    for end, _, units in _KINDS:
        if name.endswith(end):
            choices = _WRITTEN[end]
            unit = next(
                (unit for unit in choices if abs(value) >= units[unit]), choices[-1] if value else choices[0]
            )
            return f"{value / units[unit]:.6g} {unit}"
    return value
