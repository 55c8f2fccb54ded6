"""Whether a tenant's prompt finds KV that another's left: one more tenant asks than there are instances to go to."""

from __future__ import annotations

import asyncio
import random

from ..client import AsyncClient

PROMPT_TOKENS = 64
STREAM_S = 60.0
TOLD_S = 30.0


async def crossed_tokens(address: str, vocabulary: int, seed: int, spoken_s: float) -> int:
    """Tokens that a tenant's prompt found cached, though only others had sent them to this cluster.

    Nothing else may run there. Instances tell of what they did every `spoken_s`, and are waited for.
    """
    draw = random.Random(seed)
    prompt = [draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)]
    async with AsyncClient(address) as client:
        asked, before = await _work(client)
        tenants = len((await client.cluster()).instances) + 1
        for tenant in range(tenants):
            async for _ in client.generate(prompt, tenant=str(tenant), max_tokens=1, timeout_s=STREAM_S):
                pass
        async with asyncio.timeout(TOLD_S):
            while True:
                await asyncio.sleep(spoken_s)
                told, hits = await _work(client)
                if told >= asked + tenants * PROMPT_TOKENS:
                    return hits - before


async def _work(client: AsyncClient) -> tuple[int, int]:
    """Tokens of all prompts begun, and how many of them were cached."""
    work = [instance.work for instance in (await client.cluster()).instances]
    return sum(each.asked_tokens for each in work), sum(each.hit_tokens for each in work)
