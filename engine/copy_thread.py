"""The thread of all copies, which tells whether it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


class CopyThread(ThreadPoolExecutor):
    """Runs one call at a time, in order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(1, thread_name_prefix="transfer")
        self._clock = clock
        self._since: float | None = None

    def submit(self, call: Callable[..., Result], /, *arguments: object) -> Future[Result]:
        return super().submit(self._run, call, *arguments)

    @property
    def busy_s(self) -> float:
        """How long the call under way has lasted."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def _run(self, call: Callable[..., Result], *arguments: object) -> Result:
        self._since = self._clock()
        try:
            return call(*arguments)
        finally:
            self._since = None
