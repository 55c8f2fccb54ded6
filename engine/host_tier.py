"""Host memory as a second tier: blocks go there when their holder leaves, and come back by the names of their contents.

Both tiers know blocks by name, so a sequence that leaves for the second time is copied only as far as it has grown, and
one that comes back may find its blocks in either. Copies run beside the steps. While one runs, the blocks at both of
its ends belong to it, whatever becomes of the sequence: nothing that is read is freed, and nothing that is written is
seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .blocks import GONE, BlockPool, OutOfBlocks

MOST_COPIES = 8
"""Copies to host memory that may wait; what leaves meanwhile is not kept."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One copy between the tiers, block by block."""

    number: int
    out: bool
    """To host memory; otherwise back."""
    device_ids: tuple[int, ...]
    host_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a copy belongs to. Its `names` are those of all blocks that it holds, of which it copies the last."""

    swap: Swap
    names: list[bytes]
    until: float = 0.0
    """The pins of its blocks."""
    waiting: object = None
    """The sequence for which the blocks come back."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Blocks have come back for the sequence `waiting`; the table in the device's pool is under `key`."""

    waiting: object
    key: Hashable
    names: list[bytes]
    """Of its leading blocks that hold what they should: where the copy failed, of those that were here before."""


class HostTier:
    """The ledger of both ends of the copies; `take_swaps` says what is to be copied, `ended` hears how it went."""

    def __init__(self, device: BlockPool, blocks: int):
        self.host = BlockPool(blocks, span=device.span)
        self.returned_blocks = 0
        """How many came back so far."""
        self._device = device
        self._jobs: dict[int, _Job] = {}
        self._count = 0
        self._swaps: list[Swap] = []

    @property
    def leaving(self) -> bool:
        """Blocks of the device are on their way to host memory, and free or cached afterwards."""
        return any(job.swap.out for job in self._jobs.values())

    @property
    def arriving(self) -> set[bytes]:
        """Names of the blocks that are on their way back to the device."""
        back = [job for job in self._jobs.values() if not job.swap.out]
        return {name for job in back for name in job.names[-len(job.swap.device_ids) :]}

    @property
    def idle(self) -> bool:
        return not self._jobs

    def take_swaps(self) -> list[Swap]:
        """The copies that were begun since the last call."""
        swaps, self._swaps = self._swaps, []
        return swaps

    def lacks(self, names: Sequence[bytes], gone: int = 0) -> int:
        """How many of these blocks, but for the first `gone`, are not in host memory."""
        return len(names) - len(self.host.find_from(names, gone))

    def leave(self, key: Hashable, names: list[bytes], until: float) -> None:
        """Free the table `key` of the device once its full blocks are in host memory; at once if that cannot be."""
        known = self.host.find_from(names, self._device.gone(key))
        number = self._count + 1
        try:
            if len(known) == len(names) or len(self._jobs) >= MOST_COPIES:
                raise OutOfBlocks("nothing to copy, or too much")
            self.host.hold(number, len(names), len(names), known)
        except OutOfBlocks:
            self._device.free(key, names, until)
            return
        self._device.publish(key, names)
        self._device.rename(key, _key(number))
        blocks = self._device.table(_key(number))[len(known) : len(names)]
        self._begin(_Job(Swap(number, True, tuple(blocks), self._new(number, known)), names, until))

    def fetch(self, names: Sequence[bytes], known: Sequence[int], room: int, waiting: object) -> bool:
        """Bring back for `waiting` what is here behind the blocks `known` to the device; False where it cannot be."""
        found = self.host.find(names)
        if len(found) <= len(known):
            return False
        number, gone = self._count + 1, found.count(GONE)
        known = [GONE] * gone + list(known[gone:])
        try:
            self._device.hold(_key(number), len(found), room, known)
        except OutOfBlocks:
            return False
        self.host.hold(number, len(found), len(found), found)
        blocks = self._device.table(_key(number))[len(known) :]
        swap = Swap(number, False, tuple(blocks), tuple(found[len(known) :]))
        self._begin(_Job(swap, list(names[: len(found)]), waiting=waiting))
        return True

    def ended(self, number: int, ok: bool) -> Arrival | None:
        """A copy has ended. What came back must be taken from, or freed in, the device's pool by the caller."""
        job = self._jobs.pop(number)
        swap, key = job.swap, _key(number)
        if swap.out:
            self.host.free(number, job.names if ok else ())
            self._device.free(key, job.names, job.until)
            return None
        self.host.free(number)
        if ok:
            self.returned_blocks += len(swap.device_ids)
            return Arrival(job.waiting, key, job.names)
        if self._device.gone(key):
            self._device.free(key)  # without what did not come, the rest is the end of no prefix
            self._device.hold(key, 1, len(job.names))
            return Arrival(job.waiting, key, [])
        return Arrival(job.waiting, key, job.names[: len(job.names) - len(swap.device_ids)])

    def _new(self, number: int, known: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.host.table(number)[len(known) :])

    def _begin(self, job: _Job) -> None:
        self._count = job.swap.number
        self._jobs[job.swap.number] = job
        self._swaps.append(job.swap)


def _key(number: int) -> tuple[str, int]:
    """Names a copy's table in the device's pool."""
    return "swap", number
