"""Where instances run: actors of Ray, each life in the place of the last."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError, RayError
from ray.experimental import internal_kv as kv
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..handover.values import Incarnation
from .config import Config, InstanceSettings
from .instance_actor import InstanceActor
from .ray_calls import CALL_S, asked, bounded, described, named_actor, named_actors, plain_errors
from .registry import Running, Spec
from .supervisor import Found

ACTOR_CPUS = 0.1
"""What Ray counts for an instance on the CPU: it is there to be placed, not to be rationed."""
KEPT = "instances"
"""Under which name Ray keeps what a next controller is to know; in the namespace of the cluster."""
DEAD_S = 30.0
"""Within it Ray ends an actor on another node, though it be stopped."""
PLACED_S = 30.0
"""Within it Ray has made an actor whose place is ready, wherever it may load its code from."""
ROOM_S = 1.0
"""Within it Ray finds the room that there is, and longer than that nobody waits without saying so."""
ROOM_POLL_S = 0.1
LACKS = {"INFEASIBLE": "no node has that at all", "NO_RESOURCES": "it is taken"}
"""What Ray says of a group that is not placed."""
FIND_S = 10.0
"""How long a new controller waits for the word of an instance that it finds: a busy machine is no reason to end it."""


@dataclass(frozen=True)
class Place:
    """What Ray is asked for. `shares_gpus`: the part of a GPU that each instance has, 0 on the CPU."""

    namespace: str
    pool_resources: bool
    """Nodes declare `penstock_prefill` and `penstock_decode`, one a place."""
    gpu_share: float
    host: str
    """The interface that instances listen on; empty: their node's own address."""

    def bundle(self, spec: Spec) -> dict[str, float]:
        bundle = {"CPU": ACTOR_CPUS}
        if self.gpu_share:
            bundle["GPU"] = self.gpu_share
        if self.pool_resources:
            bundle[f"penstock_{spec.home}"] = 1
        return bundle


@dataclass
class _Life:
    handle: Any
    pidfd: int | None = None
    """Where its process is on this node: readable once the process is dead, whoever it was that died."""


class RayHost:
    """Instances as detached actors, each in a placement group of its own that outlives its lives."""

    def __init__(self, config: Config, place: Place, instance: str):
        self._config = config
        self._place = place
        self._instance = instance
        self._node = ray.get_runtime_context().get_node_id()
        self._lives: dict[Incarnation, _Life] = {}
        self._making: dict[Incarnation, asyncio.Task[Any]] = {}
        self._placing: dict[str, asyncio.Task[PlacementGroup]] = {}
        """Groups that are asked for, by instance."""

    async def find(self) -> dict[Incarnation, Found]:
        names = await asked(named_actors, self._place.namespace, "instance/")
        lives = list(map(_incarnation, names))
        answers = await asyncio.gather(*map(self._take_over, names, lives))
        return {who: found for who, found in zip(lives, answers, strict=True) if found is not None}

    async def _take_over(self, name: str, who: Incarnation) -> Found | None:
        """How it does; None where it is dead."""
        try:
            handle = await asked(named_actor, name, self._place.namespace)
        except ValueError:  # it died since
            return None
        self._lives[who] = _Life(handle)
        try:
            running = await self._described(name, handle)
            if running is not None:
                self._open(who, running)
            return Found(running)
        except (RayActorError, ProcessLookupError, ValueError):
            del self._lives[who]
            return None
        except TimeoutError:
            return Found(hung=True)

    async def _described(self, name: str, handle: Any) -> Running | None:
        """`described`, twice: Ray's head is asked between, for without it an actor may not be reached that lives."""
        try:
            return await described(handle, FIND_S, self._config.handover.heartbeat_s)
        except TimeoutError:
            await asked(named_actor, name, self._place.namespace)
            return await described(handle, FIND_S, self._config.handover.heartbeat_s)

    async def place(self, spec: Spec) -> str:
        group = await self._group_of(spec)
        deadline = time.monotonic() + ROOM_S
        while True:
            told = await asked(placement_group_table, group)
            if told.get("state") == "CREATED":
                return ""
            if time.monotonic() > deadline:
                needs = " and ".join(f"{count:g} {what}" for what, count in self._place.bundle(spec).items())
                lacks = LACKS.get(told.get("stats", {}).get("scheduling_state", ""), "it is not placed yet")
                return f"it needs {needs} of Ray, and {lacks}"
            await asyncio.sleep(ROOM_POLL_S)

    async def _group_of(self, spec: Spec) -> PlacementGroup:
        """Its placement group, asked for where there is none; `leave` waits for what is being asked for."""
        if spec.name not in self._placing:
            self._placing[spec.name] = asyncio.create_task(asked(self._group, spec))
        placing = self._placing[spec.name]
        try:
            return await asyncio.shield(placing)
        finally:
            if placing.done():
                self._placing.pop(spec.name, None)

    async def start(self, spec: Spec, life: int) -> Running:
        who = Incarnation(spec.name, life)
        async with plain_errors():
            if who not in self._lives:
                group = await self._group_of(spec)
                self._making[who] = asyncio.create_task(asyncio.to_thread(self._create, spec, life, group))
                await self._made(who, self._config.cluster.start_s)
                await self._placed(who, spec)
            started = self._lives[who].handle.start.remote()
            running = await asyncio.wait_for(started, self._config.cluster.start_s)
        self._open(who, running)
        return running

    async def _made(self, who: Incarnation, limit_s: float) -> None:
        """Wait for its actor, if one is being made: one that has to wait for Ray's head is there then."""
        if who in self._making:
            await bounded(asyncio.wait([self._making[who]]), limit_s)
            self._lives[who] = _Life(self._making.pop(who).result())

    async def _placed(self, who: Incarnation, spec: Spec) -> None:
        """Wait until its actor is there; else give its place back, so that the next life has another.

        A head that dies between asking a node for a worker and noting the answer leaves the place taken, by nobody.
        """
        try:
            await described(self._lives[who].handle, PLACED_S, self._config.handover.heartbeat_s)
        except TimeoutError:
            await self.leave(spec.name)
            raise TimeoutError(
                f"Ray did not make its actor within {PLACED_S:g} s; it gets another place"
            ) from None

    def _create(self, spec: Spec, life: int, group: PlacementGroup) -> Any:
        """Its actor. Blocks while Ray's head is away."""
        bundle = self._place.bundle(spec)
        return (
            ray.remote(InstanceActor)
            .options(
                name=f"instance/{spec.name}@{life}",
                namespace=self._place.namespace,
                lifetime="detached",
                max_restarts=0,
                num_cpus=bundle.pop("CPU"),
                num_gpus=bundle.pop("GPU", 0),
                resources=bundle,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
            )
            .remote(self._instance, self._settings(spec, life))
        )

    async def ended(self, who: Incarnation) -> str:
        life = self._lives[who]
        while True:
            try:
                await (_readable(life.pidfd) if life.pidfd is not None else life.handle.wait.remote())
            except ActorUnavailableError:
                await asyncio.sleep(self._config.handover.heartbeat_s)
                continue
            except RayActorError:
                pass
            return "its process died"

    async def kill(self, who: Incarnation) -> None:
        with suppress(RayError):  # then there is none
            await self._made(who, CALL_S)
        life = self._lives.get(who)
        if life is None:
            return
        if life.pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(life.pidfd, signal.SIGKILL)
            await bounded(_readable(life.pidfd))
        await bounded(asyncio.to_thread(ray.kill, life.handle))
        if life.pidfd is None:
            await bounded(_dead(life.handle), DEAD_S)
        else:
            os.close(life.pidfd)
        del self._lives[who]

    async def places(self) -> list[str]:
        groups = (await asked(placement_group_table)).values()
        names = [group["name"] for group in groups if group["state"] != "REMOVED"]
        ours = self._group_name("")
        return [name.removeprefix(ours) for name in names if name.startswith(ours)]

    async def leave(self, name: str) -> None:
        if (placing := self._placing.pop(name, None)) is not None:
            await asyncio.wait({placing})
        with suppress(ValueError):  # it never had one
            await asked(remove_placement_group, await asked(get_placement_group, self._group_name(name)))

    async def recall(self) -> str:
        kept = await asked(partial(kv._internal_kv_get, KEPT, namespace=self._place.namespace))
        return kept.decode() if kept else ""

    async def keep(self, text: str) -> None:
        put = asyncio.to_thread(kv._internal_kv_put, KEPT, text, namespace=self._place.namespace)
        try:
            await bounded(put)
        except RayError as error:
            raise ConnectionError(f"Ray does not keep it: {error}") from error

    def _settings(self, spec: Spec, life: int) -> InstanceSettings:
        return InstanceSettings(
            name=spec.name,
            life=life,
            prefill_tokens=spec.prefill_tokens,
            decode_slots=spec.decode_slots,
            host=self._place.host,
            engine=self._config.engine_of(spec.home),
            handover=self._config.handover,
            cost=self._config.cost,
            itl_target_s=self._config.cluster.itl_target_s,
            drain_s=self._config.cluster.drain_s,
            log_level=self._config.cluster.log_level,
            log_json=self._config.cluster.log_json,
        )

    def _group(self, spec: Spec) -> PlacementGroup:
        """The instance's placement group, made by its first life."""
        name = self._group_name(spec.name)
        try:
            return get_placement_group(name)
        except ValueError:
            bundle = self._place.bundle(spec)
            return placement_group([bundle], strategy="STRICT_PACK", name=name, lifetime="detached")

    def _group_name(self, instance: str) -> str:
        return f"{self._place.namespace}/{instance}"

    def _open(self, who: Incarnation, running: Running) -> None:
        if running.node == self._node:
            self._lives[who].pidfd = os.pidfd_open(running.pid)


def forget(namespace: str) -> None:
    """What a controller kept for the next one."""
    kv._internal_kv_del(KEPT, namespace=namespace)


def _incarnation(name: str) -> Incarnation:
    instance, _, life = name.removeprefix("instance/").rpartition("@")
    return Incarnation(instance, int(life))


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def _dead(handle: Any) -> None:
    """Wait until Ray says that the actor is dead."""
    while True:
        try:
            await handle.wait.remote()
        except ActorUnavailableError:
            await asyncio.sleep(0.1)
        except (RayActorError, ActorUnschedulableError):  # the latter: its place was given back
            return
