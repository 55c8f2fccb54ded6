"""KV blocks that were not given back: what every instance must have none of when nothing runs any more."""

from __future__ import annotations

import asyncio
import time

from ..client import AsyncClient, Instance, PenstockError
from ..handover.config import HandoverConfig

ANSWER_S = 2.0


def leaked_blocks(instance: Instance) -> int:
    """Blocks that are neither free nor cached; one at least of an instance that does not say."""
    blocks = instance.blocks
    return blocks.total - blocks.free - blocks.cached if blocks.total else 1


async def settled(address: str, cfg: HandoverConfig, starts_s: float = 0.0) -> tuple[Instance, ...]:
    """The instances as soon as all serve and hold no block; at the latest once every lease and grace time has passed,
    and `starts_s`, in which lost ones may have started anew. `PenstockError` where nobody answers then."""
    deadline = time.monotonic() + cfg.lease_s + cfg.grace_s + starts_s
    async with AsyncClient(address) as client:
        while time.monotonic() < deadline:
            await asyncio.sleep(3 * cfg.heartbeat_s)  # each pool has spoken since, to those who listen
            try:
                instances = (await client.cluster(timeout_s=ANSWER_S)).instances
            except PenstockError:
                continue
            if all(one.state == "serving" and not leaked_blocks(one) for one in instances):
                return instances
        return (await client.cluster(timeout_s=ANSWER_S)).instances
