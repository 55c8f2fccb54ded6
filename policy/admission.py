"""Whether a sequence may enter an instance's memory beside those inside: three rules, in blocks that will be needed.

`conservative` never has to take memory back and leaves most of it unused; `aggressive` uses all and takes it back
often; `predicted` (Past-Future: Gong et al., ASPLOS 2025) expects outputs as long as those that ended lately were.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

from .state import blocks_for


@dataclass(frozen=True, slots=True)
class Demand:
    """A sequence's need of KV, in tokens: what it holds when it enters, and the most that it may ever hold here."""

    tokens: int
    most_tokens: int


@dataclass(frozen=True, slots=True)
class Need:
    """What one sequence needs of memory, in tokens."""

    held: int
    """KV that it has, or will have when its context is computed."""
    remaining: int
    """What it is expected to add to that."""
    most: int
    """KV that it may ever have."""

    def within(self, tokens: int) -> Need:
        """Where it never holds more than so many at once."""
        held = min(self.held, tokens)
        return Need(held, min(self.held + self.remaining, tokens) - held, min(self.most, tokens))


def conservative(needs: Sequence[Need], block_size: int) -> int:
    """Blocks for all of them at their longest."""
    return sum(blocks_for(max(need.held, need.most), block_size) for need in needs)


def aggressive(needs: Sequence[Need], block_size: int) -> int:
    """Blocks for what they hold now."""
    return sum(blocks_for(need.held, block_size) for need in needs)


def predicted(needs: Sequence[Need], block_size: int) -> int:
    """Blocks at the peak: when the i-th longest to remain ends, it and those that remain longer have grown by as much.

    The peak is the greatest of (held by the first i + i times the i-th remainder), remainders descending.
    """
    spare = block_size - 1  # of a last block that is not full
    held = peak = 0
    for place, need in enumerate(sorted(needs, key=lambda need: -need.remaining), start=1):
        held += need.held + spare
        peak = max(peak, held + place * need.remaining)
    return min(peak // block_size, conservative(needs, block_size))


RULES: dict[str, Callable[[Sequence[Need], int], int]] = {
    "predicted": predicted,
    "aggressive": aggressive,
    "conservative": conservative,
}


def admits(rule: str, inside: Sequence[Need], entering: Need, block_size: int, total: int) -> bool:
    """Whether one more fits beside those inside, of `total` blocks.

    One alone always enters, unless `ever_fits` says no.
    """
    if not inside:
        return ever_fits(entering, block_size, total)
    return RULES[rule]([*inside, entering], block_size) <= total


def ever_fits(need: Need, block_size: int, total: int) -> bool:
    """Whether memory holds the sequence at its longest when nothing else is there."""
    return blocks_for(max(need.held, need.most), block_size) <= total


# ---- how long an output will be


def share_of(seed: int, name: str) -> float:
    """A number in [0, 1) that stands for this sequence whenever its length is guessed: guesses do not flicker."""
    return crc32(f"{seed}/{name}".encode()) / 2**32


def expected_length(lengths: Sequence[int], made: int, share: float) -> int | None:
    """A length drawn from those of outputs that ended, ascending, among the ones longer than what is `made`.

    None where there is no longer one.
    """
    shorter = bisect_right(lengths, made)
    longer = len(lengths) - shorter
    return lengths[shorter + int(share * longer)] if longer else None
