"""What is waited for until all is given back, and what counts as not given back."""

import asyncio

import grpc
import grpc.aio
import pytest

from penstock.benchmarks.leaks import leaked_blocks, settled
from penstock.client import PenstockError
from penstock.handover.config import HandoverConfig
from penstock.proto import control_pb2 as pb
from penstock.proto.control_pb2_grpc import ControlServiceServicer, add_ControlServiceServicer_to_server

QUICK = HandoverConfig(heartbeat_s=0.01, hung_after_s=0.05, lease_s=0.3, grace_s=0.3)
SERVING, STARTING = pb.INSTANCE_STATE_SERVING, pb.INSTANCE_STATE_STARTING


class Told(ControlServiceServicer):
    """Tells one instance after the other, and the last for ever; None is no answer."""

    def __init__(self, *told: pb.Instance | None):
        self._told = list(told)

    async def GetCluster(self, request, context):
        one = self._told.pop(0) if len(self._told) > 1 else self._told[0]
        if one is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the controller is away")
        return pb.GetClusterResponse(instances=[one])


def instance(state=SERVING, **blocks: int) -> pb.Instance:
    return pb.Instance(name="decode-0", state=state, blocks=pb.Blocks(**blocks))


def wait(*told: pb.Instance | None, cfg: HandoverConfig = QUICK):
    async def run():
        server = grpc.aio.server()
        add_ControlServiceServicer_to_server(Told(*told), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            (one,) = await settled(f"127.0.0.1:{port}", cfg)
            return one
        finally:
            await server.stop(None)

    return asyncio.run(run())


def test_an_instance_that_starts_or_holds_a_block_or_a_controller_that_is_away_is_waited_for():
    held, clean = instance(total=8, free=4, cached=3), instance(total=8, free=4, cached=4)
    one = wait(instance(STARTING), None, held, clean, held, cfg=HandoverConfig(heartbeat_s=0.01))
    assert one.state == "serving" and leaked_blocks(one) == 0


def test_what_is_held_in_the_end_has_leaked():
    assert leaked_blocks(wait(instance(total=8, free=4, cached=3))) == 1


def test_an_instance_that_says_nothing_has_leaked():
    assert leaked_blocks(wait(instance())) == 1


def test_nobody_that_answers_is_an_error():
    with pytest.raises(PenstockError, match="away"):
        wait(None)
