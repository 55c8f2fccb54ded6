"""Which prefixes each instance is believed to have cached: those of what it was sent, the last to be used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from .state import Key


class PrefixDirectory:
    """Names of blocks by instance, as `prefix.chain` makes them under any key, the same for all that is noted here.

    It forgets what was used least lately, leaves first, as instances do; what it believes may be wrong all the same,
    and costs time then, nothing else.
    """

    def __init__(self) -> None:
        self._names: dict[Key, OrderedDict[bytes, None]] = {}

    def note(self, instance: Key, names: Sequence[bytes], most: int) -> None:
        """The instance has, or will soon have, a sequence of these blocks; `most` is what it can hold."""
        known = self._names.setdefault(instance, OrderedDict())
        for name in reversed(names):  # the first block is the last to go
            known[name] = None
            known.move_to_end(name)
        while len(known) > most:
            known.popitem(last=False)

    def blocks(self, names: Sequence[bytes]) -> dict[Key, int]:
        """How many leading blocks of these each instance has; none where it is not named."""
        counts = {instance: _leading(known, names) for instance, known in self._names.items()}
        return {instance: count for instance, count in counts.items() if count}

    def keep(self, instances: Collection[Key]) -> None:
        """Others are gone, and their memory with them."""
        self._names = {instance: known for instance, known in self._names.items() if instance in instances}


def _leading(known: Collection[bytes], names: Sequence[bytes]) -> int:
    return next((place for place, name in enumerate(names) if name not in known), len(names))
