"""The figures of a decision, in one line."""

from __future__ import annotations

from ..client import Decision


def figures_of(decision: Decision) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in decision.figures.items())


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value == int(value) else f"{value:.4g}"
