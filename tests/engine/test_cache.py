"""Blocks travel between caches bit by bit, over memory of its own or of others."""

import mmap
import random

import pytest
import torch

from penstock.engine.cache import KVCache
from penstock.engine.layout import CacheLayout

CPU = torch.device("cpu")


def layout(dtype: str = "float32", blocks: int = 12, **sizes: int) -> CacheLayout:
    return CacheLayout(
        **{"layers": 3, "block_size": 4, "kv_heads": 2, "head_dim": 6, **sizes}, blocks=blocks, dtype=dtype
    )


def filled(layout: CacheLayout) -> KVCache:
    cache = KVCache(layout, CPU)
    cache.buffer.copy_(torch.randint(0, 256, (layout.total_bytes,), dtype=torch.uint8))
    return cache


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [{}, {"block_size": 1, "kv_heads": 1, "head_dim": 2}, {"head_dim": 64}])
def test_gathered_blocks_scatter_into_another_cache_unchanged(dtype: str, sizes: dict[str, int]) -> None:
    source, destination = filled(layout(dtype, 12, **sizes)), filled(layout(dtype, 20, **sizes))
    before = [layer.clone() for layer in destination.layers]
    taken = random.Random(1).sample(range(12), 5)
    given = random.Random(2).sample(range(20), 5)
    layers = slice(1, 3)
    destination.scatter(given, source.gather(taken, layers), layers)
    for index, (theirs, ours) in enumerate(zip(source.layers, destination.layers, strict=True)):
        moved = index in (1, 2)
        for a, b in zip(taken, given, strict=True):
            assert bits(ours[:, b]) == bits(theirs[:, a] if moved else before[index][:, b])
        untouched = [block for block in range(20) if block not in given]
        assert bits(ours[:, untouched]) == bits(before[index][:, untouched])


def test_a_layer_lies_where_the_layout_says() -> None:
    cache = filled(layout())
    page = cache.layout.page_bytes
    for index, layer in enumerate(cache.layers):
        for half in (0, 1):
            first = index * cache.layout.layer_bytes + (half * cache.layout.blocks + 5) * page
            assert bits(layer[half, 5]) == bits(cache.buffer[first : first + page])
    assert cache.layout.total_bytes == cache.layout.blocks * cache.layout.block_bytes == cache.buffer.numel()


def test_two_caches_over_one_mapping_see_each_other() -> None:
    shape = layout()
    mapping = mmap.mmap(-1, shape.total_bytes)
    one, two = KVCache(shape, CPU, memoryview(mapping)), KVCache(shape, CPU, memoryview(mapping))
    one.layers[2][1, 7].fill_(3.5)
    assert torch.all(two.layers[2][1, 7] == 3.5)
    assert torch.all(two.layers[2][1, 6] == 0)


def test_bytes_received_are_staging_without_a_copy() -> None:
    cache, other = filled(layout()), filled(layout())
    staging = cache.gather([3, 1])
    received = staging.view(torch.uint8).flatten().clone()
    assert received.numel() == cache.staging_bytes(2)
    shaped = other.from_bytes(received, 2)
    assert shaped.data_ptr() == received.data_ptr()
    other.scatter([8, 0], shaped)
    assert bits(other.layers[0][:, 8]) == bits(cache.layers[0][:, 3])


def test_gather_reuses_given_room() -> None:
    cache = filled(layout())
    room = cache.staging(2)
    assert cache.gather([4, 9], out=room).data_ptr() == room.data_ptr()
    assert bits(room[0, :, 1]) == bits(cache.layers[0][:, 9])


def test_layouts_that_differ_only_in_blocks_may_exchange() -> None:
    assert layout(blocks=3).shape_key == layout(blocks=9).shape_key
    assert layout("bfloat16").shape_key != layout().shape_key
    for bad in ({"dtype": "int8"}, {"blocks": 0}):
        with pytest.raises(ValueError, match="KV"):
            layout(**bad)  # type: ignore[arg-type]
