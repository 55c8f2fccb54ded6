"""Starts a whole cluster on Ray, tells how far it is, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..client import Client, Delta, Instance, Sampling
from ..router.config import ModelInfo
from . import logs, processes, ray_runtime, state
from .config import Config
from .controller import INSTANCE, Controller
from .preparation import LOOPBACK, model_info, new_record, settled
from .ray_calls import named_actors
from .ray_host import Place, forget
from .registry import State, specs
from .router_actor import RouterActor
from .watch import Watch

logger = logging.getLogger(__name__)

ROUTER = "penstock.router.server:RouterServer"
CALL_S = 10.0
"""Limit of a call to an actor that has nothing long to do."""
GONE_S = 3.0
"""How long the processes of a stopped cluster may take to end by themselves."""
POLL_S = 0.05
WARM_UP = [0] * 8
"""Prompt of the first request, whose token shows that the whole way works."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Started:
    """How long the start took, and what it took, in seconds and bytes."""

    seconds: float
    first_token_s: float
    """From the start to the first token of a request."""
    memory: processes.Memory


class Cluster:
    """A running cluster. `with Cluster.start(config) as cluster:` stops it at the end, whatever happens."""

    def __init__(self, config: Config, model: ModelInfo, record: state.ClusterRecord, progress: Progress):
        self.config = config
        self.model = model
        self.record = record
        self.address = ""
        """The router's address, host:port; of several routers all, with commas between."""
        self.controller_address = ""
        self.started: Started | None = None
        self._progress = progress
        self._controller: Any = None
        self._watch: Watch | None = None
        self._routers: list[Any] = []

    @classmethod
    def start(
        cls,
        config: Config,
        *,
        progress: Progress = logger.info,
        began: float | None = None,
        foreground: bool = False,
        instance: str = INSTANCE,
        router: str = ROUTER,
    ) -> Cluster:
        """Start everything and return once a first token came through.

        `began` is the `time.monotonic()` that durations count from. `instance` and `router` name the classes that
        the actors host, as `module:name`. Raises `ValueError`, in one sentence, for what the configuration asks
        for and cannot be had, and `TimeoutError` past `cluster.start_s`; nothing is left behind then.
        """
        began = time.monotonic() if began is None else began
        model = model_info(config)
        reap_abandoned(progress)  # first: its router may listen on the port that this one is to have
        config = settled(config)
        model = replace(model, cost=config.cost, itl_target_s=config.cluster.itl_target_s)
        cluster = cls(config, model, new_record(config, foreground), progress)
        try:
            cluster._start(began, instance, router)
        except BaseException as error:
            if isinstance(error, OSError):  # nobody said what is wrong; the processes may have
                progress(
                    "\n".join(["the last lines of each log:", *logs.last_lines(cluster.record.temp_dir)])
                )
            cluster.stop()
            raise
        return cluster

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def instances(self) -> tuple[Instance, ...]:
        """What the controller knows of every instance now."""
        with Client(self.controller_address) as client:
            return client.cluster().instances

    def memory(self) -> processes.Memory:
        """Memory of every process of the cluster on this machine, this one included."""
        return processes.memory([os.getpid(), *processes.marked(self.record.cluster_id)])

    def stop(self) -> None:
        """End it, gently where that is quick. No process, folder or port of it is left. May be called twice."""
        try:
            if self._watch is not None:
                self._watch.stop()
            if ray.is_initialized():
                self._progress("stopping")
                self._stop_routers()
                if self.record.ray_address:
                    _clear(self._namespace)
                ray.shutdown()
                processes.wait_until_gone(self.record.cluster_id, GONE_S)
        finally:
            state.reap(self.record)

    @property
    def _namespace(self) -> str:
        return ray_runtime.namespace_of(self.config.cluster.name)

    def _start(self, began: float, instance: str, router: str) -> None:
        deadline = time.monotonic() + self.config.cluster.start_s
        state.write(self.record)
        self._progress(
            "starting Ray" if not self.record.ray_address else f"joining Ray at {self.record.ray_address}"
        )
        ray_runtime.start(self.config, self.record)
        self._start_actors(instance, router)
        self._await_instances(deadline)
        self.address = ",".join(_get(router.address.remote(), _left(deadline)) for router in self._routers)
        first_token_s = self._first_token(deadline) - began
        self._watch = Watch(self.controller_address, self.record.cluster_id)
        self.started = Started(time.monotonic() - began, first_token_s, self.memory())
        self.record = replace(self.record, address=self.address)
        state.write(self.record)

    def _start_actors(self, instance: str, router: str) -> None:
        config, place = self.config, _place(self.config)
        if "controller" in named_actors(self._namespace):
            raise ValueError(f"a cluster named {config.cluster.name} runs on this Ray already")
        forget(self._namespace)
        host = place.host or ray.util.get_node_ip_address()
        self.controller_address = f"{host}:{config.cluster.controller_port}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {
            "namespace": self._namespace,
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": here,
        }
        self._controller = (
            ray.remote(Controller)
            .options(name="controller", lifetime="detached", **options)
            .remote(config, place, self.controller_address, self.model.name, instance)
        )
        self._routers = [
            ray.remote(RouterActor)
            .options(name=f"router-{number}", **options)
            .remote(router, config, self.controller_address, self.model, number)
            for number in range(config.cluster.routers)
        ]

    def _await_instances(self, deadline: float) -> None:
        """Until each instance serves; its first failure ends the wait, since the next life would fare no better."""
        waiting = {spec.name: "" for spec in specs(self.config.cluster)}
        """And why each has no room."""
        while waiting:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                limit = f"{self.config.cluster.start_s:g} s (cluster.start_s)"
                room = "".join(f"; {name} has no room: {why}" for name, why in waiting.items() if why)
                raise TimeoutError(f"{', '.join(sorted(waiting))} did not start within {limit}{room}")
            for name, status, reason in _get(self._controller.states.remote(), max(left_s, CALL_S)):
                if name not in waiting:
                    continue
                if status == State.PENDING.value:
                    waiting[name] = reason
                elif reason:
                    raise ValueError(f"{name} does not start: {reason}")
                elif status == State.SERVING.value:
                    del waiting[name]
                    self._progress(f"{name} serves")
            time.sleep(POLL_S)

    def _first_token(self, deadline: float) -> float:
        """Send a request; when its first token came, as `time.monotonic()`."""
        came = 0.0
        with Client(self.address) as client:
            asked: Sampling = {"temperature": 0.0, "max_tokens": 2, "ignore_eos": True}
            for event in client.generate(WARM_UP, timeout_s=_left(deadline), **asked):
                if isinstance(event, Delta) and not came:
                    came = time.monotonic()
        return came

    def _stop_routers(self) -> None:
        """Let open streams end, within the routers' own limit."""
        if not self.address:
            return
        stopping = [router.stop.remote() for router in self._routers]
        deadline = time.monotonic() + self.config.router.stop_s + 1.0
        for number, stopped in enumerate(stopping):
            try:
                _get(stopped, max(0.0, deadline - time.monotonic()))
            except (ValueError, OSError) as error:
                logger.warning("router %d did not stop by itself: %s", number, error)


def reap_abandoned(progress: Progress = logger.info) -> int:
    """End what is left of clusters whose process was killed; how many processes that were."""
    count = 0
    for record in state.abandoned():
        if record.ray_address:
            _clear_joined(record)
        killed = len(state.reap(record))
        progress(f"reaped {killed} processes of cluster {record.name}, which was killed")
        count += killed
    return count


def _place(config: Config) -> Place:
    """What this Ray cluster offers to instances."""
    offered = ray.cluster_resources()
    instances = config.cluster.instances
    gpus = 0 if config.engine.device == "cpu" else int(offered.get("GPU", 0))
    if gpus < instances:  # instances that shared one could not hand over: NCCL refuses two ranks on a GPU
        if config.engine.device == "cuda":
            raise ValueError(f"engine.device is cuda, and Ray finds {gpus} GPUs for {instances} instances")
        gpus = 0
    return Place(
        namespace=ray_runtime.namespace_of(config.cluster.name),
        pool_resources=all(f"penstock_{spec.pool}" in offered for spec in specs(config.cluster)),
        gpu_share=1 if gpus else 0,
        host="" if config.cluster.ray_address else LOOPBACK,
    )


def _clear(namespace: str) -> None:
    """Kill the actors of a namespace on a Ray that goes on, and give their places back."""
    for name in named_actors(namespace):
        with suppress(ValueError):  # it died since
            ray.kill(ray.get_actor(name, namespace))
    forget(namespace)
    for group in ray.util.placement_group_table().values():
        if group["name"].startswith(f"{namespace}/") and group["state"] != "REMOVED":
            ray.util.remove_placement_group(ray.util.get_placement_group(group["name"]))


def _clear_joined(record: state.ClusterRecord) -> None:
    """What a killed process left on a Ray cluster that it had joined; if that is gone too, nothing is left."""
    assert record.ray_address
    namespace = ray_runtime.namespace_of(record.name)
    try:
        ray_runtime.join(
            record.ray_address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR
        )
    except ValueError as error:
        logger.info("%s", error)
        return
    _clear(namespace)
    ray.shutdown()


def _get(reference: Any, limit_s: float) -> Any:
    """The result of a call to an actor; its `ValueError` as raised there, `OSError` where none comes."""
    try:
        return ray.get(reference, timeout=limit_s)
    except RayTaskError as error:
        raise error.cause from error
    except GetTimeoutError as error:
        raise TimeoutError(f"Ray gave no answer within {limit_s:.0f} s") from error
    except RayActorError as error:
        raise ConnectionError(f"an actor died: {error}") from error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the cluster did not start in time (cluster.start_s)")
    return left
