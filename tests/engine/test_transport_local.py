"""Blocks written into a peer's memory land as they were, and a peer that is gone or foreign is not reached."""

import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.cache import KVCache
from penstock.engine.local import LocalWindow, runs
from penstock.engine.memory import SharedMemory
from penstock.engine.transport import PeerLost

sys.path.insert(0, str(Path(__file__).parent))
import transport_peer

CPU = torch.device("cpu")
BLOCKS = transport_peer.layout("float32").blocks


@pytest.fixture
def memory():
    shared = SharedMemory.create(transport_peer.layout("float32").total_bytes)
    yield shared
    shared.close()


@pytest.fixture
def peer():
    process = transport_peer.PeerProcess("float32")
    yield process
    process.kill()


pairs_of_ids = st.integers(0, 40).flatmap(
    lambda count: st.tuples(
        *[st.lists(st.integers(0, BLOCKS - 1), min_size=count, max_size=count, unique=True) for _ in range(2)]
    )
)


@given(
    pairs_of_ids,
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["float32", "bfloat16"]),
    st.integers(1, 200),
)
def test_exactly_the_named_blocks_of_the_named_layers_change(ids, first, last, dtype, target_blocks):
    layout, (sources, targets) = transport_peer.layout(dtype), ids
    target_layout = replace(layout, blocks=max(target_blocks, *targets, 0) + 1)
    source, memory = KVCache(layout, CPU), SharedMemory.create(target_layout.total_bytes)
    target = KVCache(target_layout, CPU, memory.buffer)
    transport_peer.fill(source, 1)
    transport_peer.fill(target, 2)
    wanted = target.buffer.clone()
    wanted_layers = wanted.view(target.layers[0].dtype).view(layout.layers, *target.layers[0].shape)
    for layer in range(layout.layers)[first:last]:
        wanted_layers[layer][:, targets] = source.layers[layer][:, sources]
    window = LocalWindow.attach(LocalWindow.describe(memory), target_layout)
    window.write(source, sources, targets, slice(first, last))
    window.close()
    memory.close()
    assert torch.equal(target.buffer, wanted)


@given(pairs_of_ids)
def test_runs_cover_every_pair_once_in_order_and_cannot_be_joined(ids):
    found = list(runs(*ids))
    assert [(a + i, b + i) for a, b, count in found for i in range(count)] == list(zip(*ids, strict=True))
    assert not any(a + n == c and b + n == d for (a, b, n), (c, d, _) in zip(found, found[1:], strict=False))


def test_another_process_writes_in_place(peer, memory):
    cache, draw = KVCache(transport_peer.layout("float32"), CPU, memory.buffer), random.Random(3)
    transport_peer.fill(cache, 5)
    peer.call("fill", 6)
    theirs = KVCache(transport_peer.layout("float32"), CPU)
    transport_peer.fill(theirs, 6)
    wanted = KVCache(transport_peer.layout("float32"), CPU)
    transport_peer.fill(wanted, 5)
    sources, targets = draw.sample(range(BLOCKS), 70), draw.sample(range(BLOCKS), 70)
    wanted.scatter(targets, theirs.gather(sources, slice(1, 3)), slice(1, 3))
    peer.call("write", LocalWindow.describe(memory), sources, targets, [1, 3])
    assert torch.equal(cache.buffer, wanted.buffer)


def test_writes_after_the_peers_death_harm_nobody(peer):
    descriptor, layout = peer.call("describe"), transport_peer.layout("float32")
    assert descriptor.reachable()
    window, cache = LocalWindow.attach(descriptor, layout), KVCache(layout, CPU)
    peer.kill()
    window.write(cache, range(BLOCKS), range(BLOCKS))
    window.close()
    assert not descriptor.reachable()
    with pytest.raises(PeerLost):
        LocalWindow.attach(descriptor, layout)


def test_a_number_that_was_used_again_names_no_memory(memory):
    descriptor = LocalWindow.describe(memory)
    other = SharedMemory.create(memory.size_bytes)
    assert descriptor.reachable()
    assert not replace(descriptor, fd=other.fd).reachable()
    other.close()
    assert not replace(descriptor, size_bytes=descriptor.size_bytes + 1).reachable()


def test_another_host_or_process_namespace_is_out_of_reach(memory):
    foreign = replace(LocalWindow.describe(memory), host="another boot pid:[1]")
    assert not foreign.reachable()
    with pytest.raises(PeerLost, match="another host"):
        LocalWindow.attach(foreign, transport_peer.layout("float32"))


def test_a_layout_that_does_not_fit_is_refused(memory):
    with pytest.raises(ValueError, match="layout"):
        LocalWindow.attach(LocalWindow.describe(memory), transport_peer.layout("bfloat16"))


def test_memory_cannot_be_resized_under_its_peers(memory):
    with pytest.raises(PermissionError):
        os.ftruncate(memory.fd, 0)


def test_a_large_memory_takes_room_only_where_it_is_touched():
    memory = SharedMemory.create(64 << 30)
    memory.buffer[1 << 30] = 7
    assert os.fstat(memory.fd).st_blocks * 512 < 4 << 20
    memory.close()


def test_windows_leave_no_descriptor(memory):
    descriptor, layout = LocalWindow.describe(memory), transport_peer.layout("float32")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        window = LocalWindow.attach(descriptor, layout)
        window.write(KVCache(layout, CPU), [1], [2])
        window.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
