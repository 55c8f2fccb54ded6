"""Tokens that tell their own history.

Two owners may differ in a token (a rounding tie), so here they always do: each token made is named by what came before
it and by who made it under which epoch. A stream is right when each of its tokens was made after exactly those before.
"""

from __future__ import annotations

PROMPT_BASE = -100


class Tokens:
    """Gives every (history, maker) its own token id."""

    def __init__(self) -> None:
        self._ids: dict[tuple, int] = {}
        self._past: list[tuple[tuple[int, ...], str]] = []

    def make(self, past: tuple[int, ...], maker: str) -> int:
        """The id of the token that `maker` makes after `past` (prompt and output so far)."""
        key = (past, maker)
        if key not in self._ids:
            self._ids[key] = len(self._past)
            self._past.append(key)
        return self._ids[key]

    def past(self, token: int) -> tuple[int, ...]:
        return self._past[token][0]

    def name(self, token: int) -> str:
        if token < 0:
            return f"p{token - PROMPT_BASE}"
        past, maker = self._past[token]
        return f"{sum(t >= 0 for t in past)}@{maker}"


def prompt(length: int) -> tuple[int, ...]:
    return tuple(PROMPT_BASE + i for i in range(length))
