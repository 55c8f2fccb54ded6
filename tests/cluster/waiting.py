"""Waiting for what must come to be, with a limit."""

import asyncio
import time
from collections.abc import Callable

WITHIN_S = 60.0


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, "this never came to be"
        await asyncio.sleep(0.01)


def wait_until(true: Callable[[], object]) -> None:
    """The same outside an event loop."""
    deadline = time.monotonic() + WITHIN_S
    while not true():
        assert time.monotonic() < deadline, "this never came to be"
        time.sleep(0.05)
