"""Where the messages of sessions come in: one that needs a grammar waits until it is compiled, and nobody else does."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ..handover.effects import InstanceEvent

logger = logging.getLogger(__name__)

COMPILES = 2
"""Grammars that are compiled at once."""


class Intake:
    """Posts what arrives, each session's in the order in which it came. Belongs to one event loop."""

    def __init__(self, prepare: Callable[[str], object] | None, post: Callable[[str, InstanceEvent], None]):
        """`prepare` compiles a grammar, in a thread; none where that is never needed. `post` is called in the loop."""
        self._prepare = prepare
        self._post = post
        self._held: dict[str, deque[tuple[InstanceEvent, str]]] = {}
        """Of each session that waits: what arrived, with the grammar that it needs or an empty string."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(COMPILES)
        self.backlog = 0
        """Events that wait; who adds to them holds back while they are many."""

    def take(self, session: str, event: InstanceEvent, grammar: str = "") -> None:
        """Post it: now, or once its grammar and all that came before it in this session are through."""
        if self._prepare is None:
            grammar = ""
        held = self._held.get(session)
        if held is None and not grammar:
            self._post(session, event)
            return
        self.backlog += 1
        if held is not None:
            held.append((event, grammar))
            return
        self._held[session] = deque([(event, grammar)])
        self._tasks[session] = asyncio.create_task(self._pass_on(session), name=f"grammar of {session}")

    async def close(self) -> None:
        """What still waits is posted no more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass_on(self, session: str) -> None:
        held = self._held[session]
        try:
            while held:
                event, grammar = held[0]
                if not grammar or await self._compiled(grammar, session):
                    self._post(session, event)
                held.popleft()
                self.backlog -= 1
        finally:
            self.backlog -= len(held)
            del self._held[session], self._tasks[session]

    async def _compiled(self, grammar: str, session: str) -> bool:
        """Whether it could be. What needed it is dropped otherwise, which is made good as the loss of a message is."""
        assert self._prepare is not None
        async with self._turns:
            try:
                await asyncio.to_thread(self._prepare, grammar)
            except Exception:  # noqa: BLE001  whatever it is, the other sessions go on
                logger.exception("%s: its grammar cannot be compiled", session)
                return False
        return True
