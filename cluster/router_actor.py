"""The actor that hosts a router."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Protocol

from ..router.config import ModelInfo
from . import logs, processes
from .config import Config
from .instance_actor import resolve

logger = logging.getLogger(__name__)

RESTART_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Before each next try of a router that does not come back; the last for all that follow."""


class RouterServer(Protocol):
    """What the router's actor hosts."""

    async def start(self) -> str: ...

    async def stop(self) -> None: ...


class RouterActor:
    """An actor that hosts a router; Ray starts it anew when it dies, on the same port."""

    def __init__(self, where: str, config: Config, controller: str, model: ModelInfo, number: int):
        logs.configure(config.cluster.log_level, config.cluster.log_json)
        listens = replace(config.router, port=config.router.port + number)
        self._server: RouterServer = resolve(where)(
            listens, model, controller, config.handover, f"router-{number}"
        )
        loop = asyncio.get_running_loop()
        self._first = loop.create_task(self._server.start())
        self._serving = loop.create_task(tried_again(self._first, self._server))
        processes.freeze()

    async def address(self) -> str:
        """Once it listens. `ValueError` where the port was taken at its first try."""
        return await asyncio.shield(self._first)

    async def stop(self) -> None:
        if self._serving.done():
            await self._server.stop()
        else:
            self._serving.cancel()


async def tried_again(
    first: Awaitable[str], server: RouterServer, pauses_s: Sequence[float] = RESTART_PAUSES_S
) -> str:
    """The address of a router, started as often as that takes after its `first` try.

    Of one that Ray starts anew nobody asks for the address, so nobody would hear that it could not start (its port
    taken meanwhile, say), and it would be a living process without a service.
    """
    attempt = first
    for failures in itertools.count():
        try:
            return await attempt
        except Exception as error:  # noqa: BLE001  whatever it is, it is told, and may pass
            pause_s = pauses_s[min(failures, len(pauses_s) - 1)]
            logger.error("the router does not start: %s Tried again in %g s.", error, pause_s)
            await asyncio.sleep(pause_s)
            attempt = server.start()
    raise AssertionError("there is always a next try")
