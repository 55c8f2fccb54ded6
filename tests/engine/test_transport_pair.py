"""A pair moves blocks exactly, and whatever happens to the other end costs one `PeerLost` and nothing else."""

import itertools
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from penstock.engine.cache import KVCache
from penstock.engine.pair import MESSAGE_BLOCKS, SLOTS, Pair, Rendezvous
from penstock.engine.transport import PeerLost

sys.path.insert(0, str(Path(__file__).parent))
import transport_peer

ALL = [None, None]
MANY = list(range(299, -1, -1))
TIMEOUT_S = 20.0
SHORT_S = 1.0
gids = (f"pair-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def peers():
    """One peer of each dtype that lives through the module, and three that tests may end; started together."""
    started = [
        transport_peer.PeerProcess(dtype)
        for dtype in ("float32", "bfloat16", "float32", "float32", "float32")
    ]
    yield started
    for peer in started:
        peer.kill()


@pytest.fixture(scope="module")
def peer(peers):
    return peers[0]


@pytest.fixture
def mortal(peers):
    chosen = peers.pop()
    yield chosen
    chosen.kill()


@pytest.fixture(scope="module")
def rendezvous():
    store = Rendezvous()
    yield store
    store.close()


def join(peer: transport_peer.PeerProcess, rendezvous: Rendezvous, timeout_s: float = TIMEOUT_S) -> Pair:
    gid = next(gids)
    peer.ask("open", rendezvous.address, gid, 1, timeout_s)
    pair = Pair.open(rendezvous.address, gid, 0, timeout_s)
    assert peer.answer() == ("done", None)
    return pair


def new_cache(dtype: str = "float32", seed: int = 0) -> KVCache:
    cache = KVCache(transport_peer.layout(dtype), torch.device("cpu"))
    transport_peer.fill(cache, seed)
    return cache


def expected(dtype: str, source_seed: int, source_ids, target_seed: int, target_ids, layers) -> str:
    """Digest of a cache filled from one seed after blocks of another have been copied into it."""
    source, target = new_cache(dtype, source_seed), new_cache(dtype, target_seed)
    for ours, theirs in zip(source.layers[slice(*layers)], target.layers[slice(*layers)], strict=True):
        for i, j in zip(source_ids, target_ids, strict=True):
            theirs[:, j] = ours[:, i]
    return transport_peer.digest(target)


def moved_exactly(pair: Pair, peer: transport_peer.PeerProcess, count: int = 150) -> bool:
    cache, ids = new_cache(seed=1), random.Random(count).sample(range(150), count)
    peer.call("fill", 2)
    peer.ask("receive", ids, ALL)
    pair.send(cache, ids[::-1])
    assert peer.answer() == ("done", None)
    return peer.call("digest") == expected("float32", 1, ids[::-1], 2, ids, ALL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_arrive_as_they_were_and_nothing_else_changes(dtype, peers, rendezvous):
    peer, draw = peers[0 if dtype == "float32" else 1], random.Random(dtype)
    pair = join(peer, rendezvous)
    for seed in range(12):
        count = draw.choice([0, 1, 2, MESSAGE_BLOCKS, MESSAGE_BLOCKS + 1, SLOTS * MESSAGE_BLOCKS, 150])
        ours, theirs = draw.sample(range(150), count), draw.sample(range(150), count)
        layers = sorted(draw.sample(range(4), 2)) if seed else ALL
        cache = new_cache(dtype, seed)
        peer.call("fill", seed + 100)
        if seed % 2:
            peer.ask("receive", theirs, layers)
            pair.send(cache, ours, slice(*layers))
            assert peer.answer() == ("done", None)
            assert peer.call("digest") == expected(dtype, seed, ours, seed + 100, theirs, layers)
        else:
            peer.ask("send", theirs, layers)
            pair.receive(cache, ours, slice(*layers))
            assert peer.answer() == ("done", None)
            assert transport_peer.digest(cache) == expected(dtype, seed + 100, theirs, seed, ours, layers)
    pair.close()
    peer.call("close")


def test_a_peer_killed_while_it_receives_is_lost_and_others_go_on(mortal, peer, rendezvous):
    doomed, other = join(mortal, rendezvous), join(peer, rendezvous)
    mortal.ask("receive_up_to_signal", MANY, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(PeerLost):
        doomed.send(new_cache(), MANY)
    assert time.monotonic() - began < TIMEOUT_S, "a death is known before the deadline"
    with pytest.raises(PeerLost, match="closed"):
        doomed.send(new_cache(), MANY)
    assert moved_exactly(other, peer)
    other.close()


def test_a_peer_killed_while_it_sends_is_lost_and_a_new_pair_works_at_once(mortal, peer, rendezvous):
    doomed = join(mortal, rendezvous)
    mortal.ask("send_up_to_signal", MANY, signal.SIGKILL)
    with pytest.raises(PeerLost):
        doomed.receive(new_cache(), MANY)
    pair = join(peer, rendezvous)
    assert moved_exactly(pair, peer)
    pair.close()


def test_a_peer_that_hangs_is_lost_at_the_deadline_and_so_is_its_store(mortal, rendezvous):
    address = mortal.call("address")
    pair = join(mortal, rendezvous, SHORT_S)
    mortal.ask("receive_up_to_signal", MANY, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(PeerLost):
        pair.send(new_cache(), MANY)
    assert SHORT_S * 0.9 < time.monotonic() - began < SHORT_S + 5
    with pytest.raises(PeerLost, match="no answer"):
        Pair.open(address, "hung", 0, SHORT_S)


def test_a_peer_that_does_not_come_is_lost(rendezvous):
    with pytest.raises(PeerLost):
        Pair.open(rendezvous.address, "alone", 0, SHORT_S)


def test_a_store_that_is_gone_is_a_lost_peer():
    store = Rendezvous()
    address = store.address
    store.close()
    with pytest.raises(PeerLost, match="refused"):
        Pair.open(address, "nobody", 0, TIMEOUT_S)


@pytest.mark.parametrize("ours, theirs", [(3, 2), (2, 3), (20, 40)])
def test_ends_that_disagree_on_the_size_lose_the_pair_and_no_process(ours, theirs, peer, rendezvous):
    pair = join(peer, rendezvous, SHORT_S)
    peer.ask("receive", MANY[:theirs], ALL)
    with pytest.raises(PeerLost):
        pair.send(new_cache(), MANY[:ours])
    assert peer.answer()[0] == "lost"
    again = join(peer, rendezvous)
    assert moved_exactly(again, peer)
    again.close()


def test_an_unknown_backend_is_refused(rendezvous):
    with pytest.raises(ValueError, match="carrier pigeon"):
        Pair.open(rendezvous.address, "x", 0, SHORT_S, backend="carrier pigeon")


def test_everything_listens_on_loopback_alone(peer, rendezvous):
    pair = join(peer, rendezvous)
    addresses = listening(os.getpid()) + listening(peer.process.pid)
    pair.close()
    assert len(addresses) >= 4, "a store and a gloo listener in each process"
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def listening(pid: int) -> list[str]:
    """Local addresses, as the kernel writes them, of the TCP sockets on which a process listens."""
    sockets = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            sockets.add(os.readlink(path))
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_fifty_pairs_opened_and_closed_leave_no_descriptor_and_no_thread(peer, rendezvous):
    def held() -> list[int]:
        return [
            len(list(Path(f"/proc/{pid}/{kind}").iterdir()))
            for pid in (os.getpid(), peer.process.pid)
            for kind in ("fd", "task")
        ]

    def one(timeout_s: float) -> None:
        pair = join(peer, rendezvous, timeout_s)
        assert moved_exactly(pair, peer, 20)
        pair.close()
        peer.call("close")

    one(TIMEOUT_S)
    before = held()
    for _ in range(50):
        one(TIMEOUT_S)
    settled = time.monotonic() + 5
    while held() != before and time.monotonic() < settled:
        time.sleep(0.05)  # the store's server notices closed clients by itself
    assert held() == before
