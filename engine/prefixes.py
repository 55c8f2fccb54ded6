"""The index of cached prefixes: a tree of blocks by the names of their contents, and which of them goes first.

Only blocks that nobody holds are evicted, the least recently used first, and leaves before what they grow from:
a block without those before it serves nobody. Some are pinned for a while: they go last.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Node:
    """A block of the tree."""

    block: int
    name: bytes
    parent: _Node | None
    """None where there is none, or it is no longer in the index."""
    children: int = 0
    """Those that nobody holds."""
    users: int = 1
    used: int = 0
    """When it was last used, in calls of `touch`."""
    pinned_until: float = 0.0


class PrefixIndex:
    """Blocks by name. An idle block has idle children alone, unless a sliding window has passed it."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._blocks: dict[bytes, int] = {}
        self._uses = 0
        self._pinned = 0
        """Pinned blocks that nobody holds."""
        self._leaves: list[tuple[float, int, int]] = []
        """A heap of (pinned until, used, block), with entries that are out of date."""
        self._pins: list[tuple[float, int]] = []
        """A heap of (pinned until, block), likewise."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def find(self, names: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `names`."""
        return list(self._known(names))

    def find_behind(self, names: Sequence[bytes], span: int) -> tuple[int, list[int]]:
        """(names passed over, blocks of those after them) of the longest prefix that ends with `span` known ones."""
        end = run = best = 0
        for place, name in enumerate(names, start=1):
            run = run + 1 if name in self._blocks else 0
            if run >= min(place, span):
                best, end = run, place
        first = end - min(best, span)
        return first, [self._blocks[name] for name in names[first:end]]

    def _known(self, names: Sequence[bytes]) -> Iterator[int]:
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                return
            yield block

    def block_of(self, name: bytes) -> int | None:
        return self._blocks.get(name)

    def add(self, block: int, name: bytes, before: bytes | None) -> None:
        """`block`, which one holds, has the tokens that `name` says, behind those of the block named `before`."""
        assert block not in self._nodes and name not in self._blocks
        parent = None if before is None else self._blocks.get(before)
        self._nodes[block] = _Node(block, name, None if parent is None else self._nodes[parent])
        self._blocks[name] = block

    # ---- who uses a block

    @property
    def pinned(self) -> int:
        """How many of the blocks that nobody holds are pinned."""
        return self._pinned

    def take(self, block: int) -> None:
        """One more holds the block."""
        node = self._nodes[block]
        if not node.users:
            self._pinned -= node.pinned_until > 0
            self._leave(node)
        node.users += 1

    def release(self, block: int) -> bool:
        """One less holds the block; whether it is idle now. `touch` must follow."""
        node = self._nodes[block]
        node.users -= 1
        assert node.users >= 0
        if node.users:
            return False
        self._pinned += node.pinned_until > 0
        if node.parent is not None:
            node.parent.children += 1
        return True

    def touch(self, path: Sequence[int], until: float = 0.0) -> None:
        """These blocks, in the order of their tokens, were used just now, and are pinned until then."""
        self._uses += 1
        for block in path:
            node = self._nodes[block]
            node.used = self._uses
            if until:
                self._pin(block, until)
            if not (node.users or node.children):
                self._offer(block)

    # ---- pins

    def _pin(self, block: int, until: float) -> None:
        node = self._nodes[block]
        if until > node.pinned_until:
            self._pinned += not node.users and not node.pinned_until
            node.pinned_until = until
            heapq.heappush(self._pins, (until, block))
            if len(self._pins) > 2 * len(self._nodes) + 64:
                self._pins = [(n.pinned_until, b) for b, n in self._nodes.items() if n.pinned_until]
                heapq.heapify(self._pins)

    def expire(self, now: float) -> None:
        """Pins that ended by `now` are gone."""
        while self._pins and self._pins[0][0] <= now:
            until, block = heapq.heappop(self._pins)
            node = self._nodes.get(block)
            if node is not None and node.pinned_until == until:
                node.pinned_until = 0.0
                self._pinned -= not node.users
                self._offer(block)

    # ---- eviction

    def _offer(self, block: int) -> None:
        """Enter the block among those that may go, if it may."""
        node = self._nodes[block]
        if node.users or node.children:
            return
        heapq.heappush(self._leaves, (node.pinned_until, node.used, block))
        if len(self._leaves) > 2 * len(self._nodes) + 64:
            self._leaves = [entry for entry in set(self._leaves) if self._valid(*entry)]
            heapq.heapify(self._leaves)

    def _valid(self, until: float, used: int, block: int) -> bool:
        node = self._nodes.get(block)
        if node is None or node.users or node.children:
            return False
        return (node.pinned_until, node.used) == (until, used)

    def evict(self) -> int:
        """Forget the leaf that goes first, and say which block it was; there must be one that nobody holds."""
        while True:
            entry = heapq.heappop(self._leaves)
            if self._valid(*entry):
                break
        block = entry[2]
        node = self._nodes.pop(block)
        del self._blocks[node.name]
        self._pinned -= node.pinned_until > 0
        self._leave(node)
        node.parent = None  # whoever still has the node as a parent keeps no chain of them
        return block

    def _leave(self, node: _Node) -> None:
        """It is no idle child any more; its parent may then be a leaf."""
        parent = node.parent
        if parent is None:
            return
        parent.children -= 1
        if self._nodes.get(parent.block) is parent:
            self._offer(parent.block)
