"""`replace` for the values of this folder: a step makes several new ones for each of its sequences."""

from __future__ import annotations

from typing import Any, TypeVar

Value = TypeVar("Value")

_set = object.__setattr__


def replace(value: Value, **changes: Any) -> Value:
    """A copy of a frozen dataclass with slots, with some fields changed, in half the time of `dataclasses.replace`.

    The class has nothing to be checked when one is made.
    """
    made = object.__new__(type(value))
    for name in value.__dataclass_fields__:  # pyright: ignore[reportAttributeAccessIssue]
        _set(made, name, getattr(value, name))
    for name, changed in changes.items():
        _set(made, name, changed)
    return made
