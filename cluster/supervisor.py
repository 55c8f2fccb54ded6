"""Keeps every instance running: starts it, watches it, ends it when it hangs, starts its next life."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..handover.config import HandoverConfig
from ..handover.frames import Assign
from ..handover.values import Incarnation
from ..policy.state import InstanceView, LoadView
from .link import Deaths, Link
from .registry import Record, Registry, Running, Spec, State, next_life

logger = logging.getLogger(__name__)

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Pause before the next try, by how many failed in a row."""

KEPT_S = 5.0
"""How long a decision waits until Ray keeps it for a next controller."""


@dataclass(frozen=True, slots=True)
class Found:
    """How a life does that an earlier controller started: where it serves, None while it starts."""

    running: Running | None = None
    hung: bool = False
    """It was asked for long enough, and says nothing."""


class Host(Protocol):
    """Where the processes of instances live."""

    async def find(self) -> dict[Incarnation, Found]:
        """What an earlier controller started and is not dead."""
        ...

    async def place(self, spec: Spec) -> str:
        """Ask for the place of an instance, if it has none, and wait a little for it; why there is none yet, empty
        where there is. `OSError` where it cannot be asked for now."""
        ...

    async def start(self, spec: Spec, life: int) -> Running:
        """Start a life in its place, or go on with one that was found starting, and wait until it serves.

        `ValueError`, `OSError` (`TimeoutError` too) say why it does not.
        """
        ...

    async def ended(self, who: Incarnation) -> str:
        """Wait for the death of its process; the reason."""
        ...

    async def kill(self, who: Incarnation) -> None:
        """End it at once; returns when it is dead for certain. `TimeoutError` where it is not yet: ask again."""
        ...

    async def places(self) -> list[str]:
        """The instances that have a place, or wait for one."""
        ...

    async def leave(self, name: str) -> None:
        """Give the place of an instance back that is to have no further life."""
        ...

    async def recall(self) -> str:
        """What an earlier controller kept last; empty where none did."""
        ...

    async def keep(self, text: str) -> None:
        """For the next controller, should this one end. `OSError` where that cannot be done now."""
        ...


class Supervisor:
    """One task for each instance that there is to be. `on_change` is called after every change of the registry, and
    `refusal` says why routers do not use an instance though it serves, empty where they do."""

    def __init__(
        self,
        host: Host,
        specs: Iterable[Spec],
        config: HandoverConfig,
        name: str,
        on_change: Callable[[], None],
        refusal: Callable[[Incarnation], str] = lambda who: "",
    ):
        self.registry = Registry.of(specs)
        self.refusal = refusal
        self._host = host
        self._config = config
        self._name = name
        self._on_change = on_change
        self._links: dict[str, Link] = {}
        self._doomed: dict[Incarnation, asyncio.Future[str]] = {}
        self._dead = Deaths()
        self._emptied: set[str] = set()
        """Instances that are asked to drain."""
        self._tasks = asyncio.TaskGroup()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._kept, self._stored = "", asyncio.Event()
        """What the next controller would know; the event is set whenever that changes."""
        self.taken_over = asyncio.Event()
        """What an earlier controller knew is known here."""

    async def run(self) -> None:
        """Take over what runs already, start the rest, and keep all of it running until cancelled."""
        found = await self._host.find()
        recalled = await self._host.recall()
        registry = Registry.recalled(recalled) if recalled else self.registry
        for who, how in found.items():
            if who.instance in registry:
                registry = registry.found(who, how.running)
        self._set(registry)  # all at once: whom a router does not find in a list, it gives up
        async with self._tasks as tasks:
            tasks.create_task(self._remember())
            tasks.create_task(self._tidy([who for who in found if not registry.is_current(who)]))
            for record in registry.records.values():
                self._begin(record.spec.name, found.get(record.incarnation))
            self.taken_over.set()

    async def _tidy(self, strangers: Collection[Incarnation]) -> None:
        """End what an earlier controller was about to end, and give the places back."""
        await asyncio.gather(*map(self._kill, strangers))
        for name in await self._host.places():
            if name not in self.registry:
                await self._host.leave(name)

    # ---- what is asked of it

    def add(self, spec: Spec) -> None:
        """There is to be one more instance."""
        assert spec.name not in self.registry
        self._set(self.registry.meant(spec))
        self._begin(spec.name, None)

    def assign(self, spec: Spec) -> None:
        """Give an instance the role of `spec`, now and in later lives."""
        self._set(self.registry.meant(spec))
        self._tell(spec.name)

    async def decide(self, name: str, fate: str) -> None:
        """What is to become of an instance as soon as it is empty. A next controller goes on with that, unless Ray's
        head is away for longer than `KEPT_S`."""
        self._set(self.registry.fated(name, fate))
        with suppress(TimeoutError):
            async with asyncio.timeout(KEPT_S):
                while self._kept != self.registry.remembered():
                    self._stored.clear()
                    await self._stored.wait()

    def empty(self, name: str, wanted: bool = True) -> None:
        """Have an instance drained: all that it has is moved away; or have it serve on, whatever was decided of it."""
        (self._emptied.add if wanted else self._emptied.discard)(name)
        registry = self.registry if wanted else self.registry.fated(name, "")
        self._set(registry.draining(registry[name].incarnation, wanted))
        self._tell(name)

    async def retire(self, name: str) -> None:
        """End an instance for good, whatever it does just now."""
        keeper = self._keepers.pop(name)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        record = self.registry[name]
        self._emptied.discard(name)
        self._set(self.registry.without(name))
        await self._kill(record.incarnation)
        await self._host.leave(name)

    def load(self, name: str) -> LoadView | None:
        """The newest load view of an instance that runs."""
        return self._links[name].load if name in self._links else None

    def serves(self, record: Record) -> bool:
        """It takes requests, from every router."""
        return record.state == State.SERVING and not self.refusal(record.incarnation)

    def views(self, now: float) -> list[InstanceView]:
        """Every instance there is to be, as policies see it at `now` of the monotonic clock."""
        return [self._view(record, now) for record in self.registry.records.values()]

    def _view(self, record: Record, now: float) -> InstanceView:
        spec, load = record.spec, self.load(record.spec.name)
        refused = bool(self.refusal(record.incarnation))
        return InstanceView(
            name=spec.name,
            life=record.life,
            address=record.running.address if record.running else "",
            pool=spec.pool,
            load=load or LoadView(prefill_tokens=spec.prefill_tokens, decode_slots=spec.decode_slots),
            seen_at=now - self.silent_s(spec.name),
            alive=record.usable and load is not None and not refused,
            draining=record.state == State.DRAINING,
            placed=record.state != State.PENDING,
        )

    def silent_s(self, name: str) -> float:
        """Seconds since an instance that runs was last heard; 0 where none does."""
        return self._links[name].silent_s if name in self._links else 0.0

    def condemn(self, who: Incarnation, reason: str) -> None:
        """End this life of an instance. Of one that has ended before, though perhaps under another controller, the
        instances are told so again."""
        doomed = self._doomed.get(who)
        if doomed is not None and not doomed.done():
            doomed.set_result(reason)
        elif who.instance in self.registry and who.life < self.registry[who.instance].life:
            self._dead.add(who)

    # ---- one instance

    def _begin(self, name: str, found: Found | None) -> None:
        self._keepers[name] = self._tasks.create_task(self._keep(name, found), name=f"keeper of {name}")

    async def _keep(self, name: str, found: Found | None) -> None:
        """`found`: how its life does, if an earlier controller started it."""
        failures = 0
        if found is not None:
            failures = await self._take_over(name, found)
        while True:
            if not self.registry[name].usable:
                served = await self._start(name)
                failures = 0 if served else failures + 1
            record = self.registry[name]
            if record.running is not None:
                reason = await self._watch(record.incarnation, record.running)
                await self._end(record.incarnation, reason)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _take_over(self, name: str, found: Found) -> int:
        """End what hangs, and wait for what is starting; how many starts failed."""
        who = self.registry[name].incarnation
        if found.hung:
            await self._end(who, "it does not answer a new controller")
        elif found.running is None:
            return int(not await self._serves(who))
        return 0

    async def _start(self, name: str) -> bool:
        who = Incarnation(name, next_life(self.registry[name].life, time.time_ns()))
        self._emptied.discard(name)
        self._set(self.registry.starting(name, who.life))
        return await self._serves(who)

    async def _placed(self, who: Incarnation) -> None:
        """Wait for room, for as long as it takes: none is no failure."""
        while why := await self._host.place(self.registry[who.instance].spec):
            if self.registry[who.instance].state != State.PENDING:
                logger.warning("%s waits for room: %s", who.instance, why)
            self._set(self.registry.waiting(who, why))
        self._set(self.registry.waiting(who, ""))

    async def _serves(self, who: Incarnation) -> bool:
        """Wait until this life serves; whether it came to that."""
        try:
            await self._placed(who)
            began = time.monotonic()
            running = await self._host.start(self.registry[who.instance].spec, who.life)
        except (ValueError, OSError) as error:
            await self._end(who, str(error) or type(error).__name__)
            return False
        logger.info("%s serves at %s after %.1f s", who.instance, running.address, time.monotonic() - began)
        self._set(self.registry.serving(who, running))
        return True

    async def _watch(self, who: Incarnation, running: Running) -> str:
        """Wait until this life is dead, silent or condemned; which of them."""
        link = Link(
            *(self._name, who, running.address, self._config),
            on_condemn=self._condemned_by(who),
            on_load=lambda load: self._heard(who, load),
            dead=self._dead,
            assigned=self._assigned(who.instance),
        )
        doomed = asyncio.get_running_loop().create_future()
        self._links[who.instance], self._doomed[who] = link, doomed
        ways = {
            asyncio.ensure_future(self._host.ended(who)),
            asyncio.ensure_future(link.until_silent()),
            doomed,
        }
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            reason = next(iter(done)).result()
            return f"{reason}, drained" if link.load and link.load.draining else reason
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            del self._links[who.instance], self._doomed[who]

    def _heard(self, who: Incarnation, load: LoadView) -> None:
        """An instance may drain by itself, on SIGTERM."""
        wanted = who.instance in self._emptied
        self._set(self.registry.draining(who, wanted or load.draining))

    def _tell(self, name: str) -> None:
        if name in self._links:
            self._links[name].assigned = self._assigned(name)

    def _assigned(self, name: str) -> Assign:
        spec = self.registry[name].spec
        return Assign(spec.prefill_tokens, spec.decode_slots, name in self._emptied)

    def _condemned_by(self, who: Incarnation) -> Callable[[Incarnation], None]:
        def condemn(writer: Incarnation) -> None:
            self.condemn(writer, f"{who.instance} asked for its end: it does not stop writing")

        return condemn

    async def _end(self, who: Incarnation, reason: str) -> None:
        """It counts as lost from now on; its process is ended before a next life begins."""
        logger.warning("%s (life %d) is lost: %s", who.instance, who.life, reason)
        self._set(self.registry.lost(who, reason))
        await self._kill(who)

    async def _kill(self, who: Incarnation) -> None:
        """Until it is dead for certain: no next life may begin before, and nobody may be told of its death."""
        for tries in itertools.count():
            try:
                await self._host.kill(who)
                break
            except TimeoutError:
                pause_s = BACKOFF_S[min(tries, len(BACKOFF_S) - 1)]
                logger.error("%s (life %d) does not end; asked again in %g s", *who, pause_s)
                await asyncio.sleep(pause_s)
        self._dead.add(who)

    def _set(self, registry: Registry) -> None:
        if registry is not self.registry:
            self.registry = registry
            self._changed.set()
            self._on_change()

    async def _remember(self) -> None:
        """Keep what the next controller is to know, whenever it changes."""
        while True:
            self._changed.clear()
            text = self.registry.remembered()
            if text == self._kept:
                await self._changed.wait()
                continue
            try:
                await self._host.keep(text)
                self._kept = text
                self._stored.set()
            except OSError as error:
                logger.error("what instances there are cannot be kept for a next controller: %s", error)
                await asyncio.sleep(BACKOFF_S[-1])
