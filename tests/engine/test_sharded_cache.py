"""Blocks go from any number of ranks to any other, head by head, and the whole is what it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.cache import BlockStore, KVCache, ShardedCache
from penstock.engine.layout import CacheLayout
from penstock.engine.local import LocalWindow
from penstock.engine.memory import SharedMemory

CPU = torch.device("cpu")
RANKS = st.sampled_from((1, 2, 4, 8))
KV_HEADS = st.sampled_from((1, 2, 4, 8))
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True)


def layout(kv_heads: int, dtype: str = "float32", blocks: int = 10) -> CacheLayout:
    return CacheLayout(layers=3, blocks=blocks, block_size=4, kv_heads=kv_heads, head_dim=6, dtype=dtype)


def store(whole: CacheLayout, ranks: int, memory: SharedMemory | None = None) -> BlockStore:
    share = whole.share(ranks)
    size = share.total_bytes
    buffer = None if memory is None else memory.buffer
    parts = [
        KVCache(share, CPU, None if buffer is None else buffer[rank * size : (rank + 1) * size])
        for rank in range(ranks)
    ]
    return parts[0] if ranks == 1 else ShardedCache(whole, parts)


def filled(whole: CacheLayout, ranks: int, seed: int) -> tuple[BlockStore, torch.Tensor]:
    """A store of random KV, and what stands in all its blocks."""
    made = store(whole, ranks)
    everything = torch.randn(
        made.staging(whole.blocks).shape, generator=torch.Generator().manual_seed(seed)
    ).to(getattr(torch, whole.dtype))
    made.scatter(range(whole.blocks), everything)
    return made, everything


def assert_replicas_agree(made: BlockStore, whole: CacheLayout) -> None:
    """Every rank holds what the whole says of its heads."""
    everything = made.gather(range(whole.blocks))
    for rank, part in enumerate(made.parts):
        heads = whole.held_heads(rank, len(made.parts))
        assert torch.equal(part.gather(range(whole.blocks)), everything[..., heads, :])


@given(KV_HEADS, RANKS, RANKS)
def test_every_held_head_arrives_once_from_the_rank_that_sends_it(
    kv_heads: int, sources: int, targets: int
) -> None:
    whole = layout(kv_heads)
    arrived = []
    for route in whole.routes(sources, targets):
        assert route.source in whole.senders(sources)
        own = range(kv_heads)[whole.held_heads(route.source, sources)][route.source_heads]
        there = range(kv_heads)[whole.held_heads(route.target, targets)][route.target_heads]
        assert own == there
        arrived += [(route.target, head) for head in there]
    wanted = [
        (rank, head) for rank in range(targets) for head in range(kv_heads)[whole.held_heads(rank, targets)]
    ]
    assert sorted(arrived) == wanted


@given(KV_HEADS, RANKS, IDS, st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None)
def test_what_ranks_gather_is_what_one_cache_would(
    kv_heads: int, ranks: int, ids: list[int], first: int, last: int
) -> None:
    whole = layout(kv_heads)
    made, everything = filled(whole, ranks, seed=1)
    layers = slice(first, last)
    assert torch.equal(made.gather(ids, layers), everything[layers][:, :, ids])
    out = made.staging(len(ids), layers)
    assert made.gather(ids, layers, out=out) is out
    assert torch.equal(out, everything[layers][:, :, ids])


@given(KV_HEADS, RANKS, RANKS, IDS, st.integers(0, 100), st.sampled_from(("float32", "bfloat16")))
@settings(deadline=None)
def test_blocks_written_in_place_land_on_every_rank_that_holds_their_heads(
    kv_heads: int, sources: int, targets: int, ids: list[int], seed: int, dtype: str
) -> None:
    here, there = layout(kv_heads, dtype), layout(kv_heads, dtype, blocks=12)
    source, everything = filled(here, sources, seed)
    memory = SharedMemory.create(there.share(targets).total_bytes * targets)
    target = store(there, targets, memory)
    before = torch.randn(target.staging(there.blocks).shape).to(everything.dtype)
    target.scatter(range(there.blocks), before)
    window = LocalWindow.attach(LocalWindow.describe(memory), there, targets)
    into = [(7 * number + seed) % 12 for number in ids]
    window.write(source, ids, into)
    window.close()
    before[:, :, into] = everything[:, :, ids]
    assert torch.equal(target.gather(range(there.blocks)), before)
    assert_replicas_agree(target, there)
    memory.close()


@given(KV_HEADS, RANKS, RANKS, IDS)
@settings(deadline=None)
def test_staging_of_one_division_fits_every_other(
    kv_heads: int, sources: int, targets: int, ids: list[int]
) -> None:
    whole = layout(kv_heads)
    source, everything = filled(whole, sources, seed=1)
    target, _ = filled(whole, targets, seed=2)
    into = [9 - number for number in ids]
    target.scatter(into, source.gather(ids))
    assert torch.equal(target.gather(into), everything[:, :, ids])
    assert_replicas_agree(target, whole)


def test_memory_of_another_size_than_its_ranks_need_is_refused() -> None:
    whole = layout(2)
    memory = SharedMemory.create(whole.total_bytes)
    with pytest.raises(ValueError, match="the peer's cache has"):
        LocalWindow.attach(LocalWindow.describe(memory), whole, ranks=4)
    memory.close()
