"""Faults for a running cluster: real signals to real processes, dropped packets, astray messages."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..client.cluster import Cluster, Instance
from ..cluster import processes
from . import flaky, head, network

KINDS: Mapping[str, int] = {
    "kill_prefill": 3,
    "kill_decode": 3,
    "hang": 2,
    "partition": 2,
    "slow_link": 2,
    "messages": 2,
    "kill_router": 1,
    "kill_controller": 1,
    "head": 1,
}
"""How many of each there are in a round of faults."""
OF_INSTANCES = frozenset({"kill_prefill", "kill_decode", "hang", "partition", "slow_link", "messages"})
LASTS_S = (0.3, 4.0)
"""What does not kill ends after a time between these; so long Ray is without a head."""
SLOW_BYTES_PER_S = (256 << 10, 4 << 20)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `target` is an instance's name, or empty for what there is one of."""

    kind: str
    target: str
    pid: int
    port: int
    lasts_s: float
    way: str
    """Of a partition: which packets are dropped."""
    bytes_per_s: int

    def __str__(self) -> str:
        what = {
            "hang": f"stopped for {self.lasts_s:.1f} s",
            "partition": f"cut off ({self.way}) for {self.lasts_s:.1f} s",
            "slow_link": f"{self.bytes_per_s >> 10} KiB/s for {self.lasts_s:.1f} s",
            "messages": f"late, twice or never for {self.lasts_s:.1f} s",
            "head": f"{'killed' if head.is_kept(self.pid) else 'stopped'} for {self.lasts_s:.1f} s",
        }
        return f"{self.kind} {self.target} {what.get(self.kind, 'SIGKILL')}"


def possible() -> tuple[list[str], dict[str, str]]:
    """The kinds that this machine can inject, and why it cannot the others."""
    reason = network.unavailable()
    barred: dict[str, str] = dict.fromkeys(("partition", "slow_link"), reason) if reason else {}
    return [kind for kind in KINDS if kind not in barred], barred


def draw_kinds(count: int, kinds: Sequence[str], draw: random.Random) -> list[str]:
    """So many kinds in the proportions of `KINDS`, in random order within each round."""
    drawn: list[str] = []
    while len(drawn) < count:
        once = [kind for kind in kinds for _ in range(KINDS[kind])]
        draw.shuffle(once)
        drawn += once
    return drawn[:count]


def aim(kind: str, cluster: Cluster, cluster_id: str, draw: random.Random) -> Fault | None:
    """A fault of that kind; None where it would leave nobody to serve, or nothing is there to hit."""
    lasts_s, way = draw.uniform(*LASTS_S), draw.choice(("to", "from", "both"))
    bytes_per_s = draw.randint(*SLOW_BYTES_PER_S)
    if kind in OF_INSTANCES:
        target = _instance(kind, cluster.instances, draw)
        if target is None:
            return None
        port = int(target.address.rpartition(":")[2])
        return Fault(kind, target.name, target.pid, port, lasts_s, way, bytes_per_s)
    pid = _process(kind, cluster, cluster_id)
    return None if pid is None else Fault(kind, "", pid, 0, lasts_s, way, bytes_per_s)


async def inject(fault: Fault) -> None:
    """Do it, and return when it has ended. A process that has ended since is nobody's."""
    with suppress(ProcessLookupError):
        match fault.kind:
            case "head" if head.is_kept(fault.pid):
                await head.replace(fault.pid, fault.lasts_s)
            case "hang" | "head":
                await _stop(fault.pid, fault.lasts_s)
            case "messages":
                await _unreliable(fault)
            case "partition":
                await _drop(network.cut(fault.port, fault.way), fault)
            case "slow_link":
                await _drop(network.slow(fault.port, fault.bytes_per_s), fault)
            case _:
                os.kill(fault.pid, signal.SIGKILL)


async def _stop(pid: int, lasts_s: float) -> None:
    began = processes.started_at(pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(lasts_s)
    finally:
        if processes.started_at(pid) == began:
            os.kill(pid, signal.SIGCONT)


async def _unreliable(fault: Fault) -> None:
    on = flaky.switch(fault.target)
    on.touch()
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        on.unlink(missing_ok=True)


async def _drop(wanted: list[str], fault: Fault) -> None:
    with network.rules(f"penstock_{fault.kind}_{fault.port}", wanted):
        await asyncio.sleep(fault.lasts_s)


def _instance(kind: str, instances: Sequence[Instance], draw: random.Random) -> Instance | None:
    """One that serves, where others of its pool and of the other pool do too."""
    serving = [instance for instance in instances if instance.state == "serving" and instance.pid]
    pools = {instance.pool for instance in serving}
    spare = [one for one in serving if sum(other.pool == one.pool for other in serving) > 1]
    wanted = {"kill_prefill": "prefill", "kill_decode": "decode"}.get(kind)
    aimed = [one for one in spare if wanted in (None, one.pool)]
    return draw.choice(aimed) if aimed and len(pools) > 1 else None


def _process(kind: str, cluster: Cluster, cluster_id: str) -> int | None:
    if kind == "kill_router":
        if len(cluster.routers) < 2:
            return None
        return max(cluster.routers, key=lambda router: router.sessions).pid
    title = {"kill_controller": "ray::Controller", "head": "gcs_server"}[kind]
    return next((pid for pid in processes.marked(cluster_id) if title in processes.title(pid)), None)
