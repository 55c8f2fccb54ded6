"""Messages that meet with accidents: late and so out of order, twice, or never, and only while that is asked for."""

import asyncio
import random
from collections import Counter

from penstock.benchmarks import flaky
from penstock.benchmarks.flaky import LATE_S, Accidents, FlakyInstance, switch
from penstock.cluster.config import InstanceSettings
from penstock.handover.frames import Step
from penstock.handover.values import Epoch, Incarnation, News, Refuse

PEER = Incarnation("decode-0", 1)
SETTINGS = InstanceSettings(name="prefill-0", life=1, prefill_tokens=64, decode_slots=0)


def step(index: int) -> Step:
    return Step((News("s", Epoch(0, 1), index, ()),), None)


def told(count: int) -> tuple[list[int], list[int]]:
    """Indices as they come at a router and at a peer, of `count` that were sent in order to each."""
    routers, peers = [], []

    def tell(to_routers, to_peers):
        routers.extend(frame.news[0].first_index for _, frame in to_routers)
        peers.extend(int(message.reason) for _, message in to_peers)

    async def send() -> None:
        accidents = Accidents(tell, random.Random(1))
        for index in range(count):
            refusal = Refuse(None, PEER, PEER, str(index))  # type: ignore[arg-type]
            accidents.tell([("router-0", step(index))], [(PEER, refusal)])
        await asyncio.sleep(2 * LATE_S)

    asyncio.run(send())
    return routers, peers


def test_messages_come_late_out_of_order_twice_and_never():
    for came in told(400):
        counts = Counter(came)
        assert came != sorted(came)
        assert {0, 1, 2} == {counts[index] for index in range(400)}
        assert sum(not counts[index] for index in range(400)) < 40 and set(counts) <= set(range(400))


def test_messages_of_an_instance_are_left_alone_but_while_its_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv(flaky.FOLDER, str(tmp_path))
    came = []
    monkeypatch.setattr(
        "penstock.engine.server.InstanceServer.tell", lambda self, routers, peers: came.extend(routers)
    )
    sent = [("router-0", step(index)) for index in range(50)]

    async def send() -> list[list]:
        tell, heard = FlakyInstance(SETTINGS).server.tell, []
        for disturb in (switch("decode-0"), switch("prefill-0")):
            disturb.touch()
            came.clear()
            for one in sent:
                tell([one], [])
            await asyncio.sleep(2 * LATE_S)
            heard.append(list(came))
        return heard

    of_another, its_own = asyncio.run(send())
    assert of_another == sent and its_own != sent
