"""Copies blocks between a cache and host memory, in groups, in the thread of all copies."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import torch

from .cache import BlockStore
from .host_tier import Swap

logger = logging.getLogger(__name__)

GROUP = 64
"""Blocks of one message; between two of them other copies have their turn."""


class Swapper:
    """`submit` runs a copy in the transfer thread, `ended` hears of each swap its number and whether all is there.

    One group at a time waits there, of all swaps in turn, so that a handover's last blocks wait for one at most.
    """

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
        self._waiting: deque[tuple[Swap, int]] = deque()
        self._busy = False
        self._lock = threading.Lock()

    def swap(self, swap: Swap) -> None:
        """Begin a copy. Any thread may call this."""
        with self._lock:
            self._waiting.append((swap, 0))
            begins, self._busy = not self._busy, True
        if begins:
            self._submit(self._next)

    def _next(self) -> None:
        """Copy a group of the swap whose turn it is; the rest of it after what waits."""
        with self._lock:
            swap, first = self._waiting.popleft()
        ok = self._try(swap, slice(first, first + GROUP))
        goes_on = ok and first + GROUP < len(swap.host_ids)
        with self._lock:
            if goes_on:
                self._waiting.append((swap, first + GROUP))
            self._busy = bool(self._waiting)
            busy = self._busy
        if busy:
            self._submit(self._next)
        if not goes_on:
            self._ended(swap.number, ok)

    def _try(self, swap: Swap, group: slice) -> bool:
        try:
            self._copy(swap, group)
        except Exception as error:  # noqa: BLE001 - the copy ends here; the tokens are computed again
            logger.warning("a copy to or from host memory failed: %r", error)
            return False
        return True

    def _copy(self, swap: Swap, group: slice) -> None:
        device, host = swap.device_ids[group], swap.host_ids[group]
        if swap.out:
            self._host.scatter(host, self._cache.gather(device).to(self._host.device))
            return
        self._cache.scatter(device, self._host.gather(host).to(self._cache.device))
        if self._cache.device.type == "cuda":
            torch.cuda.current_stream(self._cache.device).synchronize()
