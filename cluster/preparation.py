"""What a start settles before it needs Ray: ports, the environment that processes inherit, the model."""

from __future__ import annotations

import logging
import os
import random
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..engine.checkpoint import ModelSpec, read_checkpoint
from ..engine.config import EMBEDDED, EngineConfig
from ..policy.batching import saturation_tokens
from ..policy.cost import CostModel
from ..router.config import ModelInfo
from ..router.tokenizer import Tokenizer
from . import processes, profile, state
from .config import DECODE, PREFILL, ClusterConfig, Config

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
PORTS = range(20000, 30000)
"""Free ones are taken from here, below those that the system gives out: it is a while until they are listened on."""


def settled(config: Config) -> Config:
    """The same with every port a number, so that a restart finds its own, paths that hold in every process, and costs.

    `ValueError` where a port is in use, or the profile is none or of instances that are run otherwise.
    """
    first = _port("router.port", config.router.host, config.router.port, config.cluster.routers)
    router = replace(config.router, port=first)
    port = _port("cluster.controller_port", LOOPBACK, config.cluster.controller_port)
    model = config.engine.model if config.engine.model == EMBEDDED else str(config.engine.folder.absolute())
    cost = _profiled(config) if config.cluster.profile else config.cost
    cluster = replace(
        config.cluster,
        controller_port=port,
        prefill_tokens=_prefill_tokens(config.cluster, cost),
        profile=None,
    )
    engine = replace(config.engine, model=model)
    return replace(config, engine=engine, router=router, cluster=cluster, cost=cost)


def _profiled(config: Config) -> CostModel:
    """The cost model of the profile. It holds for one tensor parallelism; another model's is told of, and taken."""
    assert config.cluster.profile is not None
    known = profile.load(config.cluster.profile)
    for pool in (PREFILL, DECODE):
        ranks = config.engine_of(pool).tensor_parallel
        if ranks != known.tensor_parallel:
            what = f"is of tensor parallelism {known.tensor_parallel}, and the {pool} pool has {ranks}"
            raise ValueError(f"cluster.profile {config.cluster.profile} {what}")
    served = config.engine.folder.resolve().name
    if known.model != served:
        logger.warning("the profile %s is of %s; %s is served", config.cluster.profile, known.model, served)
    return known.cost


def _prefill_tokens(cluster: ClusterConfig, cost: CostModel | None) -> int:
    """More prompt tokens than these would not be prefilled faster (DistServe, section 3.1)."""
    if cluster.prefill_tokens:
        return cluster.prefill_tokens
    assert cost is not None, "the configuration was checked"
    return saturation_tokens(cost.step)


def _port(key: str, host: str, port: int, count: int = 1) -> int:
    """`port`, the first of `count`, or free ones where it is 0; `ValueError` where one of them cannot be had."""
    port = port or free_port(host, count)
    for one in range(port, port + count):
        refusal = _refusal(host, one) if one < 65536 else "there is no such port"
        if refusal is not None:
            raise ValueError(f"port {one} on {host} cannot be had ({key}): {refusal}")
    return port


def free_port(host: str, count: int = 1) -> int:
    """The first of `count` that nobody listens on now."""
    candidates = random.SystemRandom().sample(PORTS, k=100)
    wanted = (range(candidate, candidate + count) for candidate in candidates)
    free = (ports[0] for ports in wanted if all(_refusal(host, one) is None for one in ports))
    return next(free, candidates[0])


def _refusal(host: str, port: int) -> str | None:
    """Why nobody can listen there; None where one can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def new_record(config: Config, foreground: bool) -> state.ClusterRecord:
    cluster_id = secrets.token_hex(6)
    address = config.cluster.ray_address
    temp_dir = "" if address else tempfile.mkdtemp(prefix=state.TEMP_PREFIX, dir=config.cluster.temp_dir)
    return state.own(cluster_id, config.cluster.name, temp_dir, address, foreground)


def inherited(config: Config, cluster_id: str) -> dict[str, str]:
    """Environment of every process of the cluster: the mark that it is found by, and threads that leave cores alone."""
    return {
        processes.MARK: cluster_id,
        "OMP_NUM_THREADS": str(config.engine.threads),
        "SPT_NOENV": "1",  # else Ray's process titles overwrite the environment that the mark is read from
    }


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set these variables for whatever is started within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait for the end: a start of Ray that is cut short crashes, and it takes SIGTERM over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    own = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in own:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def model_info(config: Config) -> ModelInfo:
    """What the router must know of the checkpoint; `ValueError` for one that cannot be served."""
    folder = config.engine.folder
    spec = read_checkpoint(folder)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        _tell_of_unknown(Tokenizer(tokenizer).largest_id, spec.vocab)
    longest = min(_longest(config.engine_of(pool), spec) for pool in (PREFILL, DECODE))
    return ModelInfo(
        name=folder.resolve().name,
        context_tokens=longest,
        vocabulary=spec.vocab,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        end_tokens=tuple(sorted(spec.eos)),
    )


def _tell_of_unknown(largest_id: int, vocabulary: int) -> None:
    if largest_id >= vocabulary:
        what = "tokens up to %d, and the model has %d: prompts that need one beyond are refused"
        logger.warning(f"the tokenizer knows {what}", largest_id, vocabulary)


def _longest(engine: EngineConfig, spec: ModelSpec) -> int:
    """Tokens of the longest sequence that an instance serves; `ValueError` where its ranks cannot share the model."""
    spec.share(engine.tensor_parallel)
    # A GPU's `auto` would be bfloat16, which holds twice as much: promising less is safe.
    dtype = "float32" if engine.dtype == "auto" else engine.dtype
    block_bytes = spec.block_bytes(engine.block_size, dtype, engine.tensor_parallel)
    return spec.longest(engine.block_count(block_bytes), engine.block_size)
