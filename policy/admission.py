"""Whether a sequence may enter an instance's memory: the conservative rule, which never has to take memory back."""

from __future__ import annotations

from dataclasses import dataclass

from .state import blocks_for


@dataclass(frozen=True, slots=True)
class Demand:
    """A sequence's need of KV, in tokens: what it holds when it enters, and the most that it may ever hold here."""

    tokens: int
    most_tokens: int


def promise(demand: Demand, block_size: int) -> int:
    """The blocks to set aside for a sequence, so that it can run to its end."""
    return blocks_for(max(demand.tokens, demand.most_tokens), block_size)


def admits(needed: int, promised: int, total: int) -> bool:
    """Whether `needed` more blocks can be promised beside those `promised` already, of `total`."""
    return promised + needed <= total
