"""What people see of a measured profile: its coefficients with their errors, and the files it is kept in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from rich.table import Table

from ..cluster import units
from ..cluster.fit import StepSample, copy_errors, step_errors
from ..cluster.profile import save
from ..policy.cost import StepCost
from .profile import Measured


def tables(measured: Measured) -> Iterator[Table]:
    """The laws of steps, the links, and the errors of each kind of step."""
    cost = measured.profile.cost
    laws = Table(
        "steps", "tokens", "base", "per token", "per chunk work", "per context token", title="Fitted cost"
    )
    for name, law in (("with a prompt", cost.step.prefill), ("decodes alone", cost.step.decode)):
        for piece, tokens in ((law.below, f"< {law.split_tokens}"), (law.above, f">= {law.split_tokens}")):
            if law.split_tokens > 1 or piece is law.above:
                laws.add_row(
                    name, tokens, *(str(units.write(getattr(piece, f.name), f.name)) for f in fields(piece))
                )
    yield laws
    links = Table("link", "latency", "bandwidth", "error p50, all sizes")
    for name, link in cost.links.items():
        values = (str(units.write(getattr(link, f.name), f.name)) for f in fields(link))
        links.add_row(name, *values, f"{np.median(copy_errors(link, measured.links[name])):.1%}")
    yield links
    errors = Table("held-out steps", "shapes", "error p50", "p90", "max")
    for name, found in errors_by_kind(cost.step, measured.held).items():
        quantiles = (f"{np.quantile(found, q):.1%}" for q in (0.5, 0.9, 1.0))
        errors.add_row(name, str(len(found)), *quantiles)
    yield errors


def errors_by_kind(step: StepCost, samples: Sequence[StepSample]) -> dict[str, np.ndarray]:
    """The errors of prompts alone, decodes alone and mixed steps; a kind without samples is left out."""
    kinds: dict[str, list[StepSample]] = {"prompts": [], "decodes": [], "mixed": []}
    for sample in samples:
        shape = sample.shape
        kinds["decodes" if not shape.chunk_tokens else "mixed" if shape.decodes else "prompts"].append(sample)
    return {kind: step_errors(step, those) for kind, those in kinds.items() if those}


def keep(measured: Measured, path: Path) -> None:
    """Write the profile to `path` and its picture beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(measured.profile, path)
    path.with_suffix(".svg").write_text(measured.scatter().svg(), encoding="utf-8")
