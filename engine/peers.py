"""What this instance says to others: one ordered stream to each, opened when there is something to say."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio

from ..handover import wire
from ..handover.channel import CHANNEL
from ..handover.config import HandoverConfig
from ..handover.frames import PeerFrame, PeerHello
from ..handover.values import Address, Incarnation
from ..proto.worker_pb2_grpc import WorkerServiceStub

logger = logging.getLogger(__name__)

QUEUE = 4096


class Peers:
    """Streams to other instances. What a broken stream held is lost, as the protocol allows."""

    def __init__(self, me: Address, config: HandoverConfig):
        self._me = me
        self._config = config
        self._addresses: dict[Incarnation, str] = {}
        self._streams: dict[Incarnation, tuple[asyncio.Queue[PeerFrame], asyncio.Task[None]]] = {}

    def meet(self, peer: Address) -> None:
        """Learn where an incarnation listens."""
        self._addresses[peer.incarnation] = peer.at

    def send(self, peer: Incarnation, frame: PeerFrame) -> None:
        """Send soon, after all that was sent before; or never."""
        stream = self._streams.get(peer)
        if stream is None or stream[1].done():
            address = self._addresses.get(peer)
            if address is None:
                logger.warning("no address of %s.%d is known; a message to it is lost", *peer)
                return
            queue: asyncio.Queue[PeerFrame] = asyncio.Queue(QUEUE)
            task = asyncio.create_task(self._run(peer, address, queue), name=f"peer {peer.instance}")
            stream = self._streams[peer] = queue, task
        try:
            stream[0].put_nowait(frame)
        except asyncio.QueueFull:
            logger.warning("%s.%d does not drain its stream; it is cut", *peer)
            stream[1].cancel()

    def forget(self, peer: Incarnation) -> None:
        """The incarnation is dead."""
        self._addresses.pop(peer, None)
        stream = self._streams.pop(peer, None)
        if stream is not None:
            stream[1].cancel()

    async def close(self) -> None:
        tasks = [task for _, task in self._streams.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, peer: Incarnation, address: str, queue: asyncio.Queue[PeerFrame]) -> None:
        try:
            async with grpc.aio.insecure_channel(address, options=CHANNEL) as channel:
                call = WorkerServiceStub(channel).Peer()
                frame: PeerFrame = PeerHello(self._me, peer)
                while True:
                    async with asyncio.timeout(self._config.hung_after_s):
                        await call.write(wire.to_peer_request(frame))
                    frame = await queue.get()
        except (grpc.RpcError, TimeoutError, asyncio.InvalidStateError) as error:
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            logger.info("the stream to %s.%d broke: %s", *peer, reason or type(error).__name__)
