"""How KV blocks reach another instance: what every transport promises.

All calls block and come from the instance's one transfer thread; each ends within the transport's timeout. Both ends
have agreed over the control plane on the block ids, the layers and the direction before either calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .cache import BlockStore

ALL_LAYERS = slice(None)


class PeerLost(Exception):
    """The other end died, hung past the deadline or expected something else: this transport is dead for good.

    Blocks of the copy that was under way hold nothing of use. A new transport to the same peer works at once.
    """


class TwoSided(Protocol):
    """Both ends call: one `send`, the other `receive`, with as many blocks and the same layers."""

    def send(self, cache: BlockStore, block_ids: Sequence[int], layers: slice = ALL_LAYERS) -> None:
        """Send these blocks of `cache`; on return they have been read and may be freed."""
        ...

    def receive(self, cache: BlockStore, block_ids: Sequence[int], layers: slice = ALL_LAYERS) -> None:
        """Fill these blocks of `cache` with the peer's, in the order of its ids; on return they hold them."""
        ...

    def close(self) -> None:
        """Free everything; no write into a cache can follow. Idempotent."""
        ...


class OneSided(Protocol):
    """The source alone calls; the destination learns of the blocks by a header sent after `write` returned."""

    def write(
        self,
        cache: BlockStore,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        layers: slice = ALL_LAYERS,
    ) -> None:
        """Copy blocks of `cache` into the destination's, pairwise; on return they have landed there."""
        ...

    def close(self) -> None:
        """Free everything; no write into the destination can follow. Idempotent."""
        ...
