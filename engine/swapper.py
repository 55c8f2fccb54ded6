"""Copies blocks between a cache and host memory, in groups, in the thread of all copies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch

from .cache import BlockStore
from .host_tier import Swap

logger = logging.getLogger(__name__)

GROUP = 64
"""Blocks of one message; between two of them other copies have their turn."""


class Swapper:
    """`submit` runs a copy in the transfer thread, `ended` hears of each swap its number and whether all is there."""

    def __init__(
        self,
        cache: BlockStore,
        host: BlockStore,
        submit: Callable[[Callable[[], None]], None],
        ended: Callable[[int, bool], None],
    ):
        self._cache = cache
        self._host = host
        self._submit = submit
        self._ended = ended

    def swap(self, swap: Swap) -> None:
        """Begin a copy. Any thread may call this."""
        self._submit(partial(self._copy_on, swap, 0))

    def _copy_on(self, swap: Swap, first: int) -> None:
        """Copy the next group, and have the rest copied after what waits."""
        ok = False
        try:
            self._copy(swap, slice(first, first + GROUP))
            if first + GROUP < len(swap.host_ids):
                self._submit(partial(self._copy_on, swap, first + GROUP))
                return
            ok = True
        except Exception as error:  # noqa: BLE001 - the copy ends here; the tokens are computed again
            logger.warning("a copy to or from host memory failed: %r", error)
        self._ended(swap.number, ok)

    def _copy(self, swap: Swap, group: slice) -> None:
        device, host = swap.device_ids[group], swap.host_ids[group]
        if swap.out:
            self._host.scatter(host, self._cache.gather(device).to(self._host.device))
            return
        self._cache.scatter(device, self._host.gather(host).to(self._cache.device))
        if self._cache.device.type == "cuda":
            torch.cuda.current_stream(self._cache.device).synchronize()
