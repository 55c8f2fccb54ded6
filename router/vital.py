"""Tasks without which a router is worse than none: its process ends with one, and whoever started it starts another."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine

logger = logging.getLogger(__name__)


def vital(work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
    """The work as a task; a defect in it ends the process."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_end_with)
    return task


def _end_with(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("a defect in %s; the router ends", task.get_name(), exc_info=error)
        os._exit(70)
