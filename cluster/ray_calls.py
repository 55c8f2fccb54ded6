"""Questions to Ray and its actors, that bear its being away, and its errors in plain words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from .registry import Running

logger = logging.getLogger(__name__)

T = TypeVar("T")
CALL_S = 5.0
"""Limit of a call to Ray that waits for nothing but Ray."""


async def described(handle: Any, limit_s: float, retry_s: float) -> Running | None:
    """Where an instance serves, None while it starts. TimeoutError where it does not say, RayActorError where it died.

    Ray may not reach an actor for a while that lives: it is asked again.
    """
    async with asyncio.timeout(limit_s):
        while True:
            try:
                return await handle.describe.remote()
            except ActorUnavailableError:
                await asyncio.sleep(retry_s)


async def asked(call: Callable[..., T], *arguments: Any) -> T:
    """What Ray's head answers, as soon as it does. While it is away Ray itself gives up every question in time."""
    while True:
        try:
            return await asyncio.to_thread(call, *arguments)
        except (RayError, TimeoutError) as error:
            logger.warning("Ray's head does not answer, and is asked again: %s", error)
            await asyncio.sleep(CALL_S)


def named_actor(name: str, namespace: str) -> Any:
    """A living actor; `ValueError` where there is none, `TimeoutError` where Ray does not know."""
    try:
        return ray.get_actor(name, namespace)
    except ValueError as error:
        if "timeout" in str(error):
            raise TimeoutError(str(error)) from error
        raise


def named_actors(namespace: str, prefix: str = "") -> list[str]:
    """Names of the living actors of a namespace."""
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)  # dicts, whatever its type says
    return [
        actor["name"]
        for actor in actors
        if actor["namespace"] == namespace and actor["name"].startswith(prefix)
    ]


@asynccontextmanager
async def plain_errors() -> AsyncIterator[None]:
    """Ray's errors as those that `Host.start` speaks of."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        text = str(cause) if isinstance(cause, (ValueError, OSError)) else f"{type(cause).__name__}: {cause}"
        raise ValueError(text) from error
    except RayActorError as error:
        raise ConnectionError("its process died while it started") from error
    except RayError as error:  # it cannot be placed, its environment cannot be made, ...
        raise ConnectionError(f"Ray does not start it: {' '.join(str(error).split())}") from error


async def bounded(call: Awaitable[Any], limit_s: float = CALL_S) -> Any:
    return await asyncio.wait_for(call, limit_s)
