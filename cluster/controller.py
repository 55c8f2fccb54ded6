"""The controller: a detached actor that keeps the instances running, and answers for the cluster on one port."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import grpc
import grpc.aio
import ray
from ray._private import worker as ray_worker
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.experimental import internal_kv as kv
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..handover.values import Incarnation
from ..proto import router_pb2 as pb
from ..proto.control_pb2_grpc import add_ControlServiceServicer_to_server
from ..proto.router_pb2_grpc import add_RouterServiceServicer_to_server
from . import logs, processes
from .balancer import Balancer
from .config import Config, InstanceSettings
from .control import Control
from .lifecycle import Lifecycle
from .overview import Overview
from .registry import Record, Running, Spec, specs
from .routers import Routers
from .supervisor import Found, Supervisor

logger = logging.getLogger(__name__)

T = TypeVar("T")

INSTANCE = "penstock.cluster.instance:Instance"
ACTOR_CPUS = 0.1
"""What Ray counts for an instance on the CPU: it is there to be placed, not to be rationed."""
KEPT = "instances"
"""Under which name Ray keeps what a next controller is to know; in the namespace of the cluster."""
DEAD_S = 30.0
"""Within it Ray ends an actor on another node, though it be stopped."""
PLACED_S = 30.0
"""Within it Ray has made an actor whose place is ready, wherever it may load its code from."""
CALL_S = 5.0
"""Limit of a call to Ray that waits for nothing but Ray."""
FIND_S = 10.0
"""How long a new controller waits for the word of an instance that it finds: a busy machine is no reason to end it."""


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

    async def start(self, spec: Spec, life: int) -> Running:
        who = Incarnation(spec.name, life)
        async with plain_errors():
            if who not in self._lives:
                group = await _bounded(asyncio.to_thread(self._group, spec), self._config.cluster.start_s)
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
            await _bounded(asyncio.wait([self._making[who]]), limit_s)
            self._lives[who] = _Life(self._making.pop(who).result())

    async def _placed(self, who: Incarnation, spec: Spec) -> None:
        """Wait until its actor is there; else give its place back, so that the next life has another.

        A head that dies between asking a node for a worker and noting the answer leaves the place taken, by nobody.
        """
        try:
            await described(self._lives[who].handle, PLACED_S, self._config.handover.heartbeat_s)
        except TimeoutError:
            await self.leave(spec)
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
            await _bounded(_readable(life.pidfd))
        await _bounded(asyncio.to_thread(ray.kill, life.handle))
        if life.pidfd is None:
            await _bounded(_dead(life.handle), DEAD_S)
        else:
            os.close(life.pidfd)
        del self._lives[who]

    async def leave(self, spec: Spec) -> None:
        with suppress(ValueError):  # it never had one
            await asked(remove_placement_group, await asked(get_placement_group, self._group_name(spec)))

    async def recall(self) -> str:
        kept = await asked(partial(kv._internal_kv_get, KEPT, namespace=self._place.namespace))
        return kept.decode() if kept else ""

    async def keep(self, text: str) -> None:
        put = asyncio.to_thread(kv._internal_kv_put, KEPT, text, namespace=self._place.namespace)
        try:
            await _bounded(put)
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
        """The instance's placement group, ready; made by its first life."""
        name = self._group_name(spec)
        bundle = self._place.bundle(spec)
        try:
            group = get_placement_group(name)
        except ValueError:
            group = placement_group([bundle], strategy="STRICT_PACK", name=name, lifetime="detached")
        if not group.wait(self._config.cluster.start_s):
            raise TimeoutError(f"Ray has no room for {spec.name}, which needs {bundle}")
        return group

    def _group_name(self, spec: Spec) -> str:
        return f"{self._place.namespace}/{spec.name}"

    def _open(self, who: Incarnation, running: Running) -> None:
        if running.node == self._node:
            self._lives[who].pidfd = os.pidfd_open(running.pid)


class Controller:
    """Serves ControlService and RouterService at the address `at`, in every life of this actor."""

    def __init__(self, config: Config, place: Place, at: str, model: str, instance: str):
        logs.configure(config.cluster.log_level, config.cluster.log_json)
        self._config = config
        self._at = at
        self._node = ray.get_runtime_context().get_node_id()
        name = config.cluster.name
        self._routers = Routers(name, model, self._lost, self._silent)
        self._supervisor = Supervisor(
            RayHost(config, place, instance),
            specs(config.cluster),
            config.handover,
            f"controller:{name}",
            lambda: self._routers.tell(self._supervisor.registry.usable()),
        )
        overview = Overview(name, model, self._supervisor, self._routers, self._rss_bytes)
        lifecycle = Lifecycle(self._supervisor, config.cluster, config.handover)
        self._control = Control(
            overview,
            lifecycle,
            self._supervisor,
            self._routers,
            config.handover,
            config.cluster.move_s,
        )
        self._balancer = Balancer(self._supervisor, self._routers, lifecycle, config, self._control.journal)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(_end_with)

    async def states(self) -> list[tuple[str, str, str]]:
        """Name, state and reason of each instance."""
        records = self._supervisor.registry.records.values()
        return [(record.spec.name, record.state.value, record.reason) for record in records]

    async def _run(self) -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_ControlServiceServicer_to_server(self._control, server)
        add_RouterServiceServicer_to_server(self._routers, server)
        server.add_insecure_port(self._at)
        await server.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervisor.run())
            tasks.create_task(self._balancer.run())

    def _lost(self, who: Incarnation, condemned: bool) -> None:
        """A router cannot reach an instance: that counts where it is to end, or where we do not hear it either."""
        silent = self._supervisor.silent_s(who.instance) > self._config.handover.hung_after_s / 2
        if condemned:
            self._supervisor.condemn(who, "a peer asked for its end: it does not stop writing")
        elif silent:
            self._supervisor.condemn(who, "a router cannot reach it, and it is silent here")

    def _silent(self, router: pb.RouterHello) -> None:
        """End a router that hangs, so that Ray starts it anew; one that Ray did not start here is its keeper's."""
        if router.pid in processes.actors(os.environ.get(processes.MARK, ""), "RouterActor"):
            logger.warning("router %s (pid %d) hangs: it is killed", router.name, router.pid)
            processes.kill(router.pid)

    def _rss_bytes(self, record: Record) -> int:
        """0 for an instance on another node."""
        running = record.running
        if running is None or running.node != self._node:
            return 0
        return processes.memory([running.pid]).rss_bytes


def _end_with(task: asyncio.Task[None]) -> None:
    """A controller that does not work ends its process, so that Ray starts the next."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("the controller fails", exc_info=error)
        os._exit(1)


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


def forget(namespace: str) -> None:
    """What a controller kept for the next one."""
    kv._internal_kv_del(KEPT, namespace=namespace)


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


def _incarnation(name: str) -> Incarnation:
    instance, _, life = name.removeprefix("instance/").rpartition("@")
    return Incarnation(instance, int(life))


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


async def _bounded(call: Awaitable[Any], limit_s: float = CALL_S) -> Any:
    return await asyncio.wait_for(call, limit_s)
