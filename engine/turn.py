"""An instance's transfer turn: whoever holds it may copy."""

from __future__ import annotations

import asyncio
from collections import deque


class TransferTurn:
    """Held by one at a time, in the order of asking; for one event loop."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Take the turn if it is free."""
        taken = not self._taken
        self._taken = True
        return taken

    async def take(self) -> None:
        """Wait for the turn; the caller sets the deadline."""
        while not self.try_take():
            free = asyncio.get_running_loop().create_future()
            self._waiting.append(free)
            try:
                await free
            except asyncio.CancelledError:
                if free.done() and not free.cancelled():
                    self._wake()
                raise

    def give_back(self) -> None:
        assert self._taken
        self._taken = False
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            free = self._waiting.popleft()
            if not free.done():
                free.set_result(None)
                return
