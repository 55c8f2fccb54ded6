"""Whether a tenant's prompt finds KV that another's left."""

from __future__ import annotations

import asyncio
import random

from ..client import AsyncClient

PROMPT_TOKENS = 64
STREAM_S = 60.0


async def crossed_tokens(address: str, vocabulary: int, seed: int, spoken_s: float) -> int:
    """Tokens that a tenant's prompt found cached, though only another had sent them to this cluster.

    Nothing else may run there. Instances have told of what they did after `spoken_s`.
    """
    draw = random.Random(seed)
    prompt = [draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)]
    async with AsyncClient(address) as client:
        before = await _hits(client)
        for tenant in ("first", "second"):
            async for _ in client.generate(prompt, tenant=tenant, max_tokens=1, timeout_s=STREAM_S):
                pass
        await asyncio.sleep(spoken_s)
        return await _hits(client) - before


async def _hits(client: AsyncClient) -> int:
    return sum(instance.work.hit_tokens for instance in (await client.cluster()).instances)
