"""A real cluster on Ray: whatever is moved, killed, stopped or restarted, the stream is that of `transformers`."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import wait_until

from penstock.benchmarks.reference import Reference
from penstock.client import Client, Completion, Delta, PenstockError
from penstock.client.events import completion
from penstock.cluster import config as cluster_config
from penstock.cluster import processes, state
from penstock.cluster.launcher import Cluster

PROMPT = list(range(40, 100))
TOKENS = 600
MOVE_AT = 40
TIE = 1e-4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config = cluster_config.default()
    config = replace(config, router=replace(config.router, port=0))
    with Cluster.start(config) as cluster:
        yield cluster
        record = cluster.record
    assert processes.marked(record.cluster_id) == []
    assert not Path(record.temp_dir).exists()
    assert record not in state.records()
    assert listeners_at(cluster.address, cluster.controller_address) == []


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(cluster_config.default().engine.folder)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """Of a cluster that serves; and after the test no block is lost."""
    wait_until(lambda: all(instance.state == "serving" for instance in cluster.instances()))
    with Client(cluster.address) as client:
        yield client
    wait_until(lambda: all(is_idle(instance) for instance in cluster.instances()))


def is_idle(instance) -> bool:
    blocks = instance.blocks
    return instance.state == "serving" and blocks.total > 0 and blocks.free + blocks.cached == blocks.total


def stream(client: Client, disturb=lambda delta: None, request_id: str | None = None) -> Completion:
    """One long request; `disturb` is called once, in mid-stream."""
    events, disturbed = [], False
    for event in client.generate(
        PROMPT, request_id=request_id, temperature=0.0, max_tokens=TOKENS, ignore_eos=True, timeout_s=120
    ):
        events.append(event)
        if isinstance(event, Delta) and event.first_index >= MOVE_AT and not disturbed:
            disturbed = True
            disturb(event)
    assert disturbed
    return completion(events)


def check(reference: Reference, whole: Completion) -> None:
    """Every token is the reference's choice, or within rounding of it."""
    assert len(whole.token_ids) == TOKENS
    logits = reference.logits(PROMPT, whole.token_ids)
    best = logits.max(dim=1).values
    chosen = logits[range(TOKENS), list(whole.token_ids)]
    wrong = [index for index in range(TOKENS) if best[index] - chosen[index] > TIE]
    assert wrong == []


def pid_of(cluster: Cluster, name: str) -> int:
    return next(instance.pid for instance in cluster.instances() if instance.name == name)


def lives(cluster: Cluster) -> dict[str, int]:
    return {instance.name: instance.life for instance in cluster.instances()}


def actors(cluster: Cluster, kind: str) -> list[int]:
    return [pid for pid in processes.marked(cluster.record.cluster_id) if kind in title(pid)]


def title(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().strip("\0 ")


def test_prefill_gives_the_first_token_and_decode_the_rest(client, reference):
    whole = stream(client)
    check(reference, whole)
    assert whole.segments[0].instance == "prefill-0"
    assert whole.segments[-1].instance.startswith("decode-")
    assert (whole.usage.handovers, whole.usage.recoveries) == (1, 0)


@pytest.mark.parametrize("mode", ["live", "blocking", "recompute"])
def test_a_request_is_moved_in_mid_stream(client, reference, mode):
    moves = []
    whole = stream(client, lambda delta: moves.extend(client.migrate(mode, mode=mode)), request_id=mode)
    check(reference, whole)
    (move,) = moves
    assert move.done, move.reason
    assert whole.segments[-1].instance == move.destination != move.source


def test_a_requests_whole_life_can_be_read_afterwards(client):
    stream(client, lambda delta: client.migrate("life", mode="live"), request_id="life")
    told = client.explain("life")
    assert told.silent == ()
    lives = {(decision.where.partition("-")[0], decision.what) for decision in told.decisions}
    router = {"received", "dispatched", "first_token", "moving", "moved", "ended"}
    assert {("router", what) for what in router} <= lives
    assert {
        ("prefill", "queued"),
        ("prefill", "chunk"),
        ("prefill", "granted"),
        ("decode", "adopted"),
    } <= lives
    committed = [decision.figures for decision in told.decisions if decision.what == "committed"]
    assert len(committed) == 2 and all(one["wire_s"] > 0 and one["queue_s"] >= 0 for one in committed)
    gone = [decision for decision in told.decisions if decision.what == "gone"]
    assert sum(int(decision.figures["made_tokens"]) for decision in gone) == TOKENS
    assert all(decision.figures["stall_s"] >= 0 for decision in gone if decision.where == "prefill-0")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_instance_that_dies_or_hangs_loses_no_token_and_comes_back(cluster, client, reference, number):
    before = lives(cluster)
    lost = []

    def disturb(delta: Delta) -> None:
        lost.append(delta.instance)
        os.kill(pid_of(cluster, delta.instance), number)

    whole = stream(client, disturb)
    check(reference, whole)
    assert whole.usage.recoveries >= 1
    wait_until(lambda: all(instance.state == "serving" for instance in cluster.instances()))
    after = lives(cluster)
    assert [name for name in after if after[name] != before[name]] == lost
    assert after[lost[0]] > before[lost[0]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_controller_that_dies_or_hangs_disturbs_nothing_and_takes_over_again(
    cluster, client, reference, number
):
    before = lives(cluster)
    (pid,) = actors(cluster, "Controller")
    check(reference, stream(client, lambda delta: os.kill(pid, number)))
    wait_until(lambda: answers(cluster) and client.cluster().routers)
    assert lives(cluster) == before
    assert actors(cluster, "Controller") != [pid]


def answers(cluster: Cluster) -> bool:
    try:
        return bool(cluster.instances())
    except PenstockError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_router_that_dies_or_hangs_comes_back_at_its_address_and_clients_resume(
    cluster, client, reference, number
):
    (router,) = client.cluster().routers
    check(reference, stream(client, lambda delta: os.kill(router.pid, number)))
    wait_until(lambda: [found.pid for found in client.cluster().routers] not in ([], [router.pid]))
    assert client.cluster().routers[0].address == cluster.address


def test_a_router_whose_port_is_taken_when_it_comes_back_tries_until_it_has_it(cluster, client, reference):
    (router,) = client.cluster().routers
    host, port = cluster.address.split(":")
    os.kill(router.pid, signal.SIGKILL)
    with taken(host, int(port)):
        wait_until(lambda: [pid for pid in actors(cluster, "RouterActor") if pid != router.pid])
        time.sleep(2.0)  # it has tried
    wait_until(lambda: attached(client))
    check(reference, stream(client))


def attached(client: Client) -> list[int]:
    """Processes of the routers, if one answers."""
    try:
        return [router.pid for router in client.cluster().routers]
    except PenstockError:
        return []


@contextmanager
def taken(host: str, port: int) -> Iterator[None]:
    """Somebody else listens there."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until(lambda: bound(other, host, port))
        other.listen()
        yield


def bound(other: socket.socket, host: str, port: int) -> bool:
    try:
        other.bind((host, port))
    except OSError:
        return False
    return True


def test_an_instance_that_is_slow_when_its_controller_comes_back_is_kept(cluster, client):
    before = lives(cluster)
    pid = pid_of(cluster, "decode-0")
    (controller,) = actors(cluster, "Controller")
    os.kill(pid, signal.SIGSTOP)
    os.kill(controller, signal.SIGKILL)
    wait_until(lambda: actors(cluster, "Controller") not in ([], [controller]))
    time.sleep(
        1.5 * cluster.config.handover.hung_after_s
    )  # longer than an instance that is watched may be silent
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: answers(cluster) and all(one.state == "serving" for one in cluster.instances()))
    assert lives(cluster) == before


def test_what_cannot_be_moved_is_said_through_the_router(client):
    with pytest.raises(PenstockError, match=r"no request nobody runs here \(NOT_FOUND\)"):
        client.migrate("nobody")
    with pytest.raises(PenstockError, match=r"no instance decode-9; .* \(NOT_FOUND\)"):
        client.migrate("nobody", "decode-9")


def test_every_port_of_ours_is_on_loopback(cluster, client):
    """Ray opens one port of its own in each of its workers, on every interface; ours come on top."""
    stream(client)
    ours = [*cluster.instances(), *client.cluster().routers]
    for pid in {one.pid for one in ours} | set(actors(cluster, "Controller")):
        addresses = [address for address, _ in listening(pid)]
        assert len([address for address in addresses if not is_loopback(address)]) <= 1
        assert any(is_loopback(address) for address in addresses)


def is_loopback(address: str) -> bool:
    """An address as /proc/net/tcp has it, of either family: in network order, four bytes at a time turned round."""
    return address.endswith("0100007F") or address == "00000000000000000000000001000000"


def listening(pid: int) -> list[tuple[str, int]]:
    """Address and port of each socket that the process listens on."""
    held = {
        link for fd in Path(f"/proc/{pid}/fd").iterdir() if (link := os.readlink(fd)).startswith("socket:")
    }
    return [(address, port) for address, port, inode in sockets() if f"socket:[{inode}]" in held]


def sockets() -> list[tuple[str, int, str]]:
    """Address, port and inode of every socket of the machine that listens."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                found.append((address, int(port, 16), fields[9]))
    return found


def listeners_at(*addresses: str) -> list[int]:
    ports = {int(address.rpartition(":")[2]) for address in addresses}
    return [port for _, port, _ in sockets() if port in ports]
