"""Numbers for values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Parts:
    """Gives equal values the same small integer; `flags` holds what `flag` says of each."""

    def __init__(self, flag: Callable[[Any], bool] = bool) -> None:
        self.ids: dict[Any, int] = {}
        self.values: list[Any] = []
        self.flag = flag
        self.flags: list[bool] = []

    def id(self, value: Any) -> int:
        known = self.ids.get(value)
        if known is None:
            known = self.ids[value] = len(self.values)
            self.values.append(value)
            self.flags.append(self.flag(value))
        return known
