"""Profiles: YAML files that hold a cost model, where it comes from, and how far it is off.

`penstock profile` writes them; those of published measurements are shipped in `profiles/`; anybody may write one.
Quantities carry their unit: `base_s: 5.37 ms`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from ..policy.cost import CostModel
from . import units
from .config import build, read_yaml, yaml_fault

DTYPES = ("float32", "bfloat16", "float16")
SHIPPED = Path(__file__).with_name("profiles")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where the numbers of a profile come from."""

    source: str
    """Who measured or published them, and under which licence."""

    date: date
    """When the profile was made."""

    revision: str = ""
    """Revision of Penstock, where it did the measuring."""

    note: str = ""
    """What was not measured, and what is known to be weak."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source must say where the numbers come from, got nothing")


@dataclass(frozen=True, kw_only=True)
class FitError:
    """Relative errors of the predictions, as shares: 0.04 is 4 %. Those that nobody knows are left out."""

    basis: str
    """What predictions were compared with: held-out shapes, the samples of the fit, nothing."""

    step_mean: float | None = None
    step_p50: float | None = None
    step_p90: float | None = None
    step_max: float | None = None
    copy_p50: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self)[1:]:
            value = getattr(self, entry.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{entry.name} must be a share of at least 0, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The cost model of one model on one kind of machine."""

    model: str
    machine: str
    """What one instance runs on."""

    cost: CostModel
    provenance: Provenance
    error: FitError

    engine: str = "penstock"
    """The serving engine that was measured."""

    tensor_parallel: int = 1
    gpus: int = 0
    """Of one instance; 0 where it runs on CPUs."""

    dtype: str = field(default="bfloat16")
    """Of weights and KV."""

    def __post_init__(self) -> None:
        for name, least in (("tensor_parallel", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


def shipped() -> list[str]:
    """The names of the profiles that come with Penstock."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(name: str | Path) -> Profile:
    """The profile in a YAML file, or a shipped one by its name.

    `ValueError` names the file and the field that is missing, unknown, in a wrong unit or out of range.
    """
    path = Path(name)
    if str(name) in shipped():
        path = SHIPPED / f"{name}.yaml"
    elif not path.is_file():
        raise ValueError(f"no profile {str(name)!r}: no such file, and shipped are {', '.join(shipped())}")
    try:
        return build(Profile, read_yaml(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}{yaml_fault(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save(profile: Profile, path: str | Path) -> Path:
    """Write a profile as a YAML file that `load` reads; quantities keep six digits."""
    path = Path(path)
    text = yaml.safe_dump(_tree(profile), sort_keys=False, width=110, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def _tree(value: Any, name: str = "") -> Any:
    """Mappings and scalars for YAML; what is None or empty is left out."""
    if is_dataclass(value):
        entries = ((entry.name, getattr(value, entry.name)) for entry in fields(value))
        return {key: _tree(item, key) for key, item in entries if item not in (None, "", {})}
    if isinstance(value, Mapping):
        return {key: _tree(item, key) for key, item in value.items()}
    if isinstance(value, float):
        written = units.write(value, name)
        return float(f"{written:.6g}") if isinstance(written, float) else written
    return value
