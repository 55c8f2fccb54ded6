"""The controller's tick: views of all instances, then the policies, then what these want of routers and instances."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

from ..policy import autoscale as scaling
from ..policy import migration
from ..policy.autoscale import AutoscaleConfig, Sample
from ..policy.journal import Decision, Journal
from ..policy.state import InstanceView, Key, Move, Scale, ScaleAction, SequenceView
from ..proto import router_pb2 as pb
from .config import DECODE, MIXED, PREFILL, Config
from .lifecycle import Lifecycle
from .operation import Progress
from .refusal import Refused
from .routers import AttachedRouter, Routers
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

LATELY_S = 10.0
"""Requests that ended within so long tell how well the pools do."""
CHANGES = 32
SAMPLE_S = 1.0
"""How often the pools are looked at."""


class Balancer:
    """Moves requests, and changes pools, as far as the configuration lets it. Never more than one change of a pool."""

    def __init__(
        self,
        supervisor: Supervisor,
        routers: Routers,
        lifecycle: Lifecycle,
        config: Config,
        journal: Journal,
    ):
        self._supervisor = supervisor
        self._routers = routers
        self._lifecycle = lifecycle
        self._config = config.cluster
        self._cost = config.cost
        self._journal = journal
        self._moves = migration.Memory()
        self._scales = scaling.Memory()
        self._history: deque[Sample] = deque()
        self._counts: deque[tuple[float, dict[str, pb.Attainment]]] = deque()
        """What each router had counted, and when."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.changes: deque[Decision] = deque(maxlen=CHANGES)
        """What pools did by themselves lately, and what came of it."""

    async def run(self) -> None:
        """Until cancelled; what was begun then is cancelled too."""
        try:
            while True:
                await asyncio.sleep(self._config.tick_s)
                try:
                    self.tick(time.monotonic())
                except Exception:  # noqa: BLE001  the tick's work ends here: no policy may cost the controller
                    logger.exception("a defect of a policy")
        finally:
            for task in self._tasks:
                task.cancel()

    def tick(self, now: float) -> None:
        views = self._supervisor.views(now)
        if self._config.migrate:
            self._migrate(views, now)
        if self._config.autoscale is not None:
            self._scale(views, self._config.autoscale, now)

    # ---- moves

    def _migrate(self, views: list[InstanceView], now: float) -> None:
        """Routers empty what drains by themselves; here the others are balanced."""
        held = self._held()
        sequences: dict[Key, list[SequenceView]] = defaultdict(list)
        for _, session in held.values():
            sequences[session.owner, session.owner_life].append(_sequence(session))
        running = [replace(view, sequences=tuple(sequences[view.key])) for view in views if view.may_decode]
        planned, self._moves = migration.plan_moves(
            running, self._config.migration, now, self._cost, self._moves
        )
        for move in planned:
            self._begin(self._move(move, *held[move.session]))

    def _held(self) -> dict[str, tuple[AttachedRouter, pb.HeldSession]]:
        return {
            session.session: (router, session)
            for router in self._routers.attached
            for session in router.sessions.values()
        }

    async def _move(self, move: Move, router: AttachedRouter, session: pb.HeldSession) -> None:
        source, to, why = move.source[0], move.destination[0], move.reason.value
        decided = self._journal.note(move.session, "move_planned", source=source, destination=to, reason=why)
        logger.info("%s: %s", move.session, decided)
        limit_s = self._config.migration.move_s
        mode = pb.MOVE_MODE_UNBEGUN if session.waits else pb.MOVE_MODE_LIVE
        result = await self._routers.move(router, move.session, to, mode, why, limit_s)
        if not result.done:
            logger.info("%s was not moved to %s: %s", move.session, to, result.reason)
            self._moves = migration.failed(self._moves, move.session)

    # ---- pools

    def _scale(self, views: list[InstanceView], cfg: AutoscaleConfig, now: float) -> None:
        if self._history and now - self._history[-1].at < SAMPLE_S:
            return
        if not self._history:  # an earlier controller may have changed a pool just now
            self._scales = scaling.Memory(dict.fromkeys(cfg.limits, now))
        self._history.append(Sample(now, tuple(views), self._attainments(now), self._waiting()))
        while len(self._history) > 1 and self._history[1].at <= now - max(cfg.idle_s, cfg.short_s):
            self._history.popleft()
        actions, self._scales = scaling.autoscale(list(self._history), cfg, now, self._scales)
        for action in actions:
            self._begin(self._change(action))

    def _attainments(self, now: float) -> dict[str, float]:
        """Of what ended lately, at all routers: the prefill pool's are first tokens, the decode pool's outputs, and the
        mixed pool's the worse of the two."""
        self._counts.append(
            (now, {router.hello.name: router.attainment for router in self._routers.attached})
        )
        while len(self._counts) > 1 and self._counts[1][0] <= now - LATELY_S:
            self._counts.popleft()
        before, after = self._counts[0][1], self._counts[-1][1]
        shares = {}
        for pool, every, met in (
            (PREFILL, "first_tokens", "first_tokens_in_time"),
            (DECODE, "outputs", "outputs_in_time"),
        ):
            count, in_time = _more(before, after, every), _more(before, after, met)
            if count > 0:
                shares[pool] = in_time / count
        return shares | ({MIXED: min(shares.values())} if shares else {})

    def _waiting(self) -> dict[str, int]:
        prefill = sum(router.waiting.prefill for router in self._routers.attached)
        decode = sum(router.waiting.decode for router in self._routers.attached)
        return {PREFILL: prefill, DECODE: decode, MIXED: prefill + decode}

    async def _change(self, action: ScaleAction) -> None:
        began, what, instance = (
            time.monotonic(),
            action.kind.value,
            action.instance[0] if action.instance else "",
        )
        self._tell(action.pool, what, instance=instance, to=action.to, reason=action.reason, **action.figures)
        try:
            async for progress in self._changing(action):
                instance = progress.instance
        except Refused as refused:
            self._tell(action.pool, f"{what}_failed", instance=instance, reason=refused.text)
        else:
            took_s = time.monotonic() - began
            self._tell(action.pool, f"{what}_done", instance=instance, to=action.to, took_s=took_s)

    def _tell(self, pool: str, what: str, **figures: float | str) -> None:
        told = self._journal.note(pool, what, **figures)
        self.changes.append(told)
        logger.info("the %s pool: %s", pool, told)

    def _changing(self, action: ScaleAction) -> AsyncIterator[Progress]:
        if action.kind is Scale.GROW:
            return self._lifecycle.grow(action.pool)
        assert action.instance is not None
        name, _ = action.instance
        return (
            self._lifecycle.drain(name)
            if action.kind is Scale.DRAIN
            else self._lifecycle.flip(name, action.to)
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a defect: a change or a move was not brought to its end", exc_info=error)


def _sequence(session: pb.HeldSession) -> SequenceView:
    return SequenceView(
        session=session.session,
        tokens=session.prompt_tokens + session.emitted_tokens,
        remaining=session.remaining_tokens,
        priority=session.priority,
        movable=session.movable,
        waits=session.waits,
    )


def _more(before: dict[str, pb.Attainment], after: dict[str, pb.Attainment], name: str) -> int:
    """What was counted since; a router that began anew counts from 0."""
    fresh = pb.Attainment()
    steps = (getattr(now, name) - getattr(before.get(router, fresh), name) for router, now in after.items())
    return sum(max(0, step) for step in steps)
