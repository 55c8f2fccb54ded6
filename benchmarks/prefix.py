"""How much of a conversation trace the prefix cache finds again, at several sizes of the cache.

The trace is Mooncake's (FAST 2025 release, Apache 2.0): for each request the ids of its blocks of 512 tokens, an id
standing for all tokens up to the block's end. It is replayed, one request after another, through the shipped pool;
through a plain LRU; and through Belady's rule, which knows the future and bounds what any policy can find. Then a part
of it, scaled down to blocks of 16 tokens, runs on a scheduler and a runner of the embedded checkpoint.
"""

from __future__ import annotations

import gzip
import heapq
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..decode_worker.phase import DecodePhase
from ..engine.blocks import BlockPool
from ..engine.config import EngineConfig
from ..engine.runner import Runner
from ..engine.scheduler import Scheduler
from ..engine.sequence import Sequence as Running
from ..handover.values import Context, Epoch, SamplingParams
from ..policy.batching import Budget
from ..prefill_worker.phase import PrefillPhase
from .figures import Report, progress

TRACE = Path(__file__).parent / "data" / "mooncake_blocks.json.gz"
CAPACITIES = (3200, 12800, 50000)
LIVE_REQUESTS = 400
LIVE_BLOCKS = 3200
LIVE_OUTPUT = 4
ROLE = Budget(1024, 8)

Request = Sequence[int]
"""Ids of blocks, from the first on."""


def measure(live_requests: int = LIVE_REQUESTS) -> Report:
    """Hit rates in shares of all blocks asked for, and tokens that were computed more than once."""
    requests = read_trace()
    figures: dict[str, float] = {}
    with progress("requests", len(requests) * 3 * len(CAPACITIES) + 2 * live_requests) as advance:
        for capacity in CAPACITIES:
            ways = {"": pool_hits, "best_": lru_hits, "belady_": belady_hits}
            for name, count in ways.items():
                figures[f"{name}hit_rate_{capacity}"] = count(requests, capacity) / sum(map(len, requests))
                advance(len(requests))
        live = [request for request in requests if len(request) <= 120][:live_requests]
        for name, caches in (("recomputed_tokens", True), ("recomputed_tokens_without", False)):
            figures[name] = recomputed_tokens(live, caches, advance)
    units = {key: "tokens" if key.startswith("recomputed") else "1" for key in figures}
    return Report(command="bench prefix", figures=figures, units=units)


def read_trace(path: Path = TRACE) -> list[Request]:
    """The requests of the packed trace: runs of known ids, then how many new ones, which are numbered on."""
    packed = json.loads(gzip.decompress(path.read_bytes()))["requests"]
    requests: list[Request] = []
    new = 0
    for runs, count in packed:
        known = [first + at for first, size in zip(runs[::2], runs[1::2], strict=True) for at in range(size)]
        requests.append([*known, *range(new, new + count)])
        new += count
    return requests


# ---- three ways to keep blocks


def pool_hits(requests: Sequence[Request], capacity: int) -> int:
    """Blocks that the shipped pool found."""
    pool, hits = BlockPool(capacity), 0
    for request in requests:
        names = [block.to_bytes(8, "little") for block in request]
        known = pool.find(names)
        pool.hold("request", len(names), len(names), known)
        pool.free("request", names)
        hits += len(known)
    return hits


def lru_hits(requests: Sequence[Request], capacity: int) -> int:
    """Blocks that the least recently used rule finds, leaves first.

    A path is used as a whole, so it is enough to count its end as used before its beginning.
    """
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for request in requests:
        hits += next((place for place, block in enumerate(request) if block not in kept), len(request))
        for block in reversed(request):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > capacity:
            kept.popitem(last=False)
    return hits


def belady_hits(requests: Sequence[Request], capacity: int) -> int:
    """Blocks found by the rule that gives up what is needed again last (Belady 1966), new blocks included.

    It need not keep what runs, nor beginnings before ends: no policy finds more.
    """
    asked = [block for request in requests for block in request]
    never = len(asked)
    next_use = [never] * len(asked)
    seen: dict[int, int] = {}
    for at in range(len(asked) - 1, -1, -1):
        next_use[at] = seen.get(asked[at], never)
        seen[asked[at]] = at
    kept: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    hits = 0
    for at, block in enumerate(asked):
        hits += block in kept
        kept[block] = next_use[at]
        heapq.heappush(farthest, (-next_use[at], block))
        while len(kept) > capacity:
            use, gone = heapq.heappop(farthest)
            if kept.get(gone) == -use:
                del kept[gone]
    return hits


# ---- on a live instance


@dataclass
class Served:
    """What ran."""

    computed_tokens: int
    """Of prompts."""
    outputs: list[list[int]]


def recomputed_tokens(requests: Sequence[Request], caches: bool, advance: Callable[[int], None]) -> int:
    """Prompt tokens computed for a second time or more, of requests with 16 tokens for each block."""
    size = EngineConfig().block_size
    first_time = len({block for request in requests for block in request}) * size
    return serve(requests, caches, advance).computed_tokens - first_time


def serve(requests: Sequence[Request], caches: bool, advance: Callable[[int], None]) -> Served:
    """Run the requests on a scheduler and a runner of the embedded checkpoint, a few at a time."""
    runner = Runner(EngineConfig(kv_blocks=LIVE_BLOCKS, device="cpu"))
    size, vocabulary = runner.layout.block_size, runner.spec.vocab
    pool = BlockPool(LIVE_BLOCKS, caches)
    scheduler = Scheduler(pool, size, ROLE, PrefillPhase(), DecodePhase(), runner.spec.fingerprint)
    served = Served(0, [[] for _ in requests])
    waiting = list(enumerate(requests))[::-1]
    while waiting or list(scheduler):
        while waiting and len(list(scheduler)) < ROLE.decode_slots:
            number, request = waiting.pop()
            tokens = [
                token
                for block in request
                for token in random.Random(block).choices(range(vocabulary), k=size)
            ]
            params = SamplingParams(max_tokens=LIVE_OUTPUT, ignore_eos=True)
            context = Context(tuple(tokens), (), params)
            scheduler.add(Running.begin(str(number), Epoch(1, 1), context, runner.spec.max_positions))
        _step(runner, scheduler, served, advance)
    return served


def _step(runner: Runner, scheduler: Scheduler, served: Served, advance: Callable[[int], None]) -> None:
    batch = scheduler.next_batch()
    drawn = runner.step([scheduler.item(sequence, tokens) for sequence, tokens in batch])
    for (sequence, tokens), token in zip(batch, drawn, strict=True):
        served.computed_tokens += 0 if sequence.decoding else tokens
        scheduler.ran(sequence, tokens)
        if token is None:
            continue
        served.outputs[int(sequence.session)].append(token)
        if sequence.append(token).end is not None:
            scheduler.remove(sequence.key, 0.0)
            advance(1)
