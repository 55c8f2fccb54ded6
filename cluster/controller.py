"""The controller: a detached actor that keeps the instances running, and answers for the cluster on one port."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import grpc
import grpc.aio
import ray

from ..handover.values import Incarnation
from ..policy.journal import Journal
from ..proto import router_pb2 as pb
from ..proto.control_pb2_grpc import add_ControlServiceServicer_to_server
from ..proto.router_pb2_grpc import add_RouterServiceServicer_to_server
from . import logs, processes
from .balancer import Balancer
from .config import Config
from .control import Control
from .lifecycle import Lifecycle
from .overview import Overview
from .ray_host import Place, RayHost
from .registry import Record, specs
from .routers import Routers
from .supervisor import Supervisor

logger = logging.getLogger(__name__)

INSTANCE = "penstock.cluster.instance:Instance"


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
            self._routers.refusal,
        )
        self._lifecycle = Lifecycle(self._supervisor, config.cluster, config.handover)
        journal = Journal("controller", time.time)
        self._balancer = Balancer(self._supervisor, self._routers, self._lifecycle, config, journal)
        overview = Overview(
            name, model, self._supervisor, self._routers, self._balancer.changes, self._rss_bytes
        )
        self._control = Control(
            overview,
            self._lifecycle,
            self._supervisor,
            self._routers,
            config.handover,
            config.cluster.move_s,
            journal,
        )
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(_end_with)
        processes.freeze()

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
            tasks.create_task(self._lifecycle.resume())
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
