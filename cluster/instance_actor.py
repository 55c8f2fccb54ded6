"""The actor that hosts one life of an instance."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import ray
from ray._private import worker as ray_worker

from .config import InstanceSettings
from .registry import Running

logger = logging.getLogger(__name__)


def resolve(where: str) -> Any:
    """What `module:name` names. The module is imported only here, in the process that needs it."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


class InstanceActor:
    """An actor that hosts one life of an instance."""

    def __init__(self, where: str, settings: InstanceSettings):
        self._where = where
        self._settings = settings
        self._running: Running | None = None
        self._starting: asyncio.Task[Running] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> Running:
        """Everything that may fail happens here, since of a constructor Ray tells only that it failed.

        It starts once; whoever asks again waits for the same end.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Running:
        host = self._settings.host or ray.util.get_node_ip_address()
        self._instance = resolve(self._where)(replace(self._settings, host=host))
        address = await self._instance.start()
        on_sigterm(self._told_to_end)
        self._running = Running(address, os.getpid(), ray.get_runtime_context().get_node_id())
        return self._running

    def _told_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._drain_and_end())

    async def _drain_and_end(self) -> None:
        """Let all that runs here be moved away first."""
        logger.info("SIGTERM: it drains, and ends then")
        await self._instance.drain()
        await self._instance.stop()
        os._exit(0)

    async def describe(self) -> Running | None:
        """None while it does not serve yet."""
        return self._running

    async def wait(self) -> None:
        """Never returns: whoever waits hears of the death of this process."""
        await asyncio.Event().wait()


def on_sigterm(act: Callable[[], None]) -> None:
    """Call `act` in this event loop when the process is told to end, in the place of what Ray would do.

    A handler can be set in the main thread alone, where no actor's code runs; Ray's own calls this function of Ray's.
    """
    loop = asyncio.get_running_loop()
    module: Any = ray_worker
    module.raise_sys_exit_with_custom_error_message = lambda *_, **__: loop.call_soon_threadsafe(act)
