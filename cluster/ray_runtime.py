"""The Ray that a cluster runs on: one of its own on this machine, or one that is joined."""

from __future__ import annotations

import logging
import socket
from typing import Any

import ray
from ray._private import worker as ray_worker

from . import processes, state
from .config import Config
from .preparation import LOOPBACK, environment, inherited, signals_held

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Limit of a connection to a Ray that is joined."""
TRIES = 3
"""Starts of a Ray of our own: now and then one of its processes hangs while it starts, and the next start is well.
Two in a row were seen on a machine whose load was 9."""
LOCAL_RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's workers step back (15) for Ray itself, and so for everything else
}


def start(config: Config, record: state.ClusterRecord) -> None:
    """A Ray of our own, apart from any other on the machine, or the one at `record.ray_address`. Processes inherit the
    mark either way. `ValueError` where none can be joined, `ConnectionError` where our own does not start."""
    mark = inherited(config, record.cluster_id)
    common: dict[str, Any] = {
        "namespace": namespace_of(config.cluster.name),
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if record.ray_address:
        join(record.ray_address, runtime_env={"env_vars": mark}, **common)
        return
    _hush()
    own: dict[str, Any] = {
        "address": "local",
        # Ray starts a worker process ahead for each: the instances, the controller and the router.
        "num_cpus": config.cluster.instances + 1 + config.cluster.routers,
        "num_gpus": 0 if config.engine.device == "cpu" else None,
        "include_dashboard": False,
        "object_store_memory": config.cluster.object_store_bytes,
        "_temp_dir": record.temp_dir,
        "_node_ip_address": LOOPBACK,
    }
    with environment(mark | LOCAL_RAY), signals_held():
        for tries_left in reversed(range(TRIES)):
            try:
                ray.init(**own, **common)
                return
            except Exception as error:  # noqa: BLE001  a Ray that does not come up in time raises plain Exception
                ray.shutdown()
                processes.reap(record.cluster_id)
                if not tries_left:
                    raise ConnectionError(f"Ray does not start: {error}") from error
                logger.warning("Ray does not start, and is tried again: %s", error)


def _hush() -> None:
    """Ray's driver prints on standard output about every worker that dies, which the controller reports already."""
    ray_worker.print_to_stdstream = lambda data, ignore_prefix: logger.debug("Ray: %s", data["lines"])


def join(address: str, **options: Any) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"no Ray cluster can be joined at {address}: an address is HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster can be joined at {address}: {error}") from error


def namespace_of(name: str) -> str:
    return f"penstock-{name}"
