"""One life of an instance behind `WorkerService`: the engine thread, the copies, and the streams around them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import torch

from ..handover import wire
from ..handover.channel import CHANNEL
from ..handover.config import HandoverConfig
from ..handover.effects import Condemn, FromPeer, FromRouter, InstanceEvent, PeerLost
from ..handover.frames import (
    Assign,
    Beat,
    Dead,
    Hello,
    InstanceFrame,
    PairOffer,
    PeerHello,
    RouterFrame,
    SeenBatch,
    Turn,
    Welcome,
)
from ..handover.recall import sessions_of, to_wire
from ..handover.values import (
    Address,
    Incarnation,
    LeaseKey,
    Move,
    PeerMessage,
    Reserve,
    Stage,
    Start,
    Window,
)
from ..policy.batching import Budget, Target
from ..policy.cost import CostModel
from ..policy.journal import Journal
from ..proto import worker_pb2 as pb
from ..proto.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from .build import build_engine, context_tokens
from .cache import KVCache
from .checkpoint import ModelSpec, read_checkpoint
from .config import EngineConfig
from .grammar import Grammars
from .host_tier import Swap
from .intake import Intake
from .links import Links
from .local import LocalWindow
from .memory import SharedMemory
from .peers import Peers
from .phase import Phase
from .runner import Runner, choose_device, choose_dtype, choose_layout, memory_bytes
from .swapper import Swapper
from .transfers import Transfers

logger = logging.getLogger(__name__)

IN_QUEUE = 16384
"""Events that may wait for the engine before its streams are read no further."""
DEAD_KEPT = 4096
"""Dead incarnations that are remembered: what they said may still be on its way."""


class InstanceServer(WorkerServiceServicer):
    """`start` loads the model and listens on a port of `host`; `stop` ends everything within seconds."""

    def __init__(
        self,
        name: str,
        life: int,
        config: EngineConfig,
        handover: HandoverConfig,
        prefill_tokens: int,
        decode_slots: int,
        prefill_phase: Phase,
        decode_phase: Phase,
        host: str = "127.0.0.1",
        cost: CostModel | None = None,
        itl_target_s: float = 0.0,
    ):
        """`cost` says what steps and copies cost, where that is known; a step with decodes is to take `itl_target_s` by
        it, 0 being no limit.
        """
        self.me = Incarnation(name, life)
        self._config = config
        self._handover = handover
        self._role = Budget(prefill_tokens, decode_slots)
        self._phases = prefill_phase, decode_phase
        self._host = host
        self._cost = cost
        self._target = Target(cost.step, itl_target_s) if cost is not None and itl_target_s else None
        self._journal = Journal(name, time.time)
        self._dead: dict[Incarnation, None] = {}
        """The latest to be buried; nothing of theirs is heard any more."""
        self._leaving = False
        """It drains whatever the controller says."""
        self._server = grpc.aio.server(options=CHANNEL)
        self._memory: SharedMemory | None = None

    # ---- life

    async def start(self) -> str:
        """The address once requests may come. ValueError for settings or a checkpoint that cannot be served."""
        self._loop = asyncio.get_running_loop()
        port = self._server.add_insecure_port(f"{self._host}:0")
        self.address = f"{self._host}:{port}"
        self._spec, self._runner = await asyncio.to_thread(self._load)
        tokenizer = self._config.folder / "tokenizer.json"
        has_text = tokenizer.exists()
        self._grammars = Grammars(tokenizer, self._spec.vocab, self._spec.eos) if has_text else None
        self._intake = Intake(self._grammars.prepare if self._grammars else None, self._admit)
        self._peers = Peers(Address(self.me, self.address), self._handover)
        self._transfers = Transfers(
            *(self.me, self._runner.cache, self._handover, self._host, self._peers.send, self._post),
            stepping=lambda: self._engine.stepping,
            journal=self._journal,
        )
        self._engine = build_engine(
            *(self.me, self._runner, self._role, self._phases, self),
            *(self._config, self._handover),
            grammars=self._grammars,
            window=self._window(),
            cost=self._cost,
            target=self._target,
            journal=self._journal,
        )
        self._swapper = self._make_swapper()
        self._links = Links(self._engine, self._handover, self._welcome(), self._take)
        add_WorkerServiceServicer_to_server(self, self._server)
        self._engine.start()
        await self._server.start()
        self._heart = asyncio.create_task(self._beat(), name="heart")
        self._heart.add_done_callback(_end_with)
        layout = self._runner.layout
        logger.info(
            "%s.%d serves %s at %s: %d blocks of %d bytes", *self.me, self._spec.family, self.address,
            layout.blocks, layout.block_bytes,
        )  # fmt: skip
        return self.address

    async def stop(self) -> None:
        """End streams, copies and the engine thread; returns within seconds."""
        self._heart.cancel()
        await asyncio.to_thread(self._engine.stop, self._handover.transport_s)
        await self._server.stop(grace=0.2)
        await self._intake.close()
        await self._peers.close()
        await self._transfers.close()
        await asyncio.to_thread(self._runner.close)
        if self._memory is not None:
            self._memory.close()

    async def drain(self, limit_s: float) -> int:
        """Take nothing more, and wait until all has been moved away, or for so long; how many sessions are left."""
        self._leaving = True
        self._engine.assign(self._role, True)
        try:
            async with asyncio.timeout(limit_s):
                while not self._engine.load.draining or self._engine.load.sessions:  # noqa: ASYNC110 - a thread empties it
                    await asyncio.sleep(self._handover.heartbeat_s / 2)
                await asyncio.sleep(self._handover.heartbeat_s)  # the last words, to routers and peers
        except TimeoutError:
            logger.warning("%d sessions are left after %g s", self._engine.load.sessions, limit_s)
        return self._engine.load.sessions

    @property
    def failed(self) -> bool:
        """The engine thread has ended by an error, or a rank has: the process should end too."""
        return not (self._engine.alive and self._runner.alive)

    def _load(self) -> tuple[ModelSpec, Runner]:
        spec = read_checkpoint(self._config.folder)
        device = choose_device(self._config)
        self._check_transport(device.type)
        if device.type == "cpu" and self._config.transport in ("auto", "local"):
            layout = choose_layout(self._config, spec, choose_dtype(self._config, device))
            self._memory = SharedMemory.create(memory_bytes(layout, self._config.tensor_parallel))
        return spec, Runner(self._config, spec, self._memory)

    def _check_transport(self, device: str) -> None:
        usable = ("auto", "local", "gloo") if device == "cpu" else ("auto", "nccl")
        if self._config.transport not in usable:
            raise ValueError(
                f"engine.transport {self._config.transport} does not move KV between {device} devices"
            )
        if device != "cpu" and self._config.tensor_parallel > 1:
            raise ValueError(
                "engine.tensor_parallel above 1 serves on CPUs alone: ranks move no KV between GPUs yet"
            )

    def _make_swapper(self) -> Swapper | None:
        layout = self._runner.layout
        blocks = self._config.host_block_count(layout.block_bytes)
        if not blocks:
            return None
        host = KVCache(replace(layout, blocks=blocks), torch.device("cpu"))
        return Swapper(self._runner.cache, host, self._transfers.submit, self._engine.post_swapped)

    def _window(self) -> Window | None:
        if self._memory is None:
            return None
        at = LocalWindow.describe(self._memory)
        blocks, ranks = self._runner.layout.blocks, self._config.tensor_parallel
        return Window(at.host, at.pid, at.fd, at.size_bytes, blocks, at.name, ranks)

    # ---- what the engine asks (from its thread)

    def send(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        self._call(self.tell, to_routers, to_peers)

    def condemn(self, writer: Incarnation) -> None:
        self._call(self._links.tell_all, Condemn(writer))

    def write_in_place(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        urgent: bool,
    ) -> None:
        if urgent:
            self._transfers.write_in_place(stage, window, source_ids, destination_ids, urgent)
        else:
            self._call(self._transfers.write_in_place, stage, window, source_ids, destination_ids, urgent)

    def give_up(self, lease: LeaseKey) -> None:
        self._call(self._transfers.give_up, lease)

    def send_blocks(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        self._call(self._transfers.send_blocks, stage, ids, urgent)

    def receive_blocks(self, stage: Stage, ids: Sequence[int]) -> None:
        self._call(self._transfers.receive_blocks, stage, ids)

    def decline_blocks(self, stage: Stage) -> None:
        self._call(self._transfers.decline, stage)

    def swap(self, swap: Swap) -> None:
        assert self._swapper is not None
        self._swapper.swap(swap)

    def close_receive(self, lease: LeaseKey) -> None:
        self._call(self._transfers.close_receive, lease)

    def reaches(self, destination: Address) -> bool:
        same_host = destination.at.rpartition(":")[0] == self._host
        return self._memory is not None and same_host and self._transfers.reachable(destination.incarnation)

    def _call(self, call: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            logger.debug("the event loop has ended; %s is not done", call)

    # ---- in the event loop

    def tell(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        for router, frame in to_routers:
            self._links.tell(router, frame)
        for peer, message in to_peers:
            self._peers.send(peer, message)

    def _post(self, session: str, event: InstanceEvent) -> None:
        self._engine.post(session, event)

    def _admit(self, session: str, event: InstanceEvent) -> None:
        """Post what arrived. A lease granted to a writer that died while it waited would never hear of that death."""
        if not (isinstance(event, FromPeer) and event.sender in self._dead):
            self._engine.post(session, event)

    async def _beat(self) -> None:
        """Show life to routers, and end where the engine shows none."""
        while True:
            await asyncio.sleep(self._handover.heartbeat_s)
            now = time.monotonic()
            if self.failed or now - self._engine.alive_at > self._handover.grace_s:
                _end_process("the engine thread or a rank has ended, or hangs; so does the instance")
            if self._transfers.hang:
                _end_process("a copy hangs, and with it what others sent or are to get; the instance ends")
            self._links.beat(now)

    # ---- WorkerService

    async def Recall(self, request: pb.RecallRequest, context: grpc.aio.ServicerContext) -> pb.RecallResponse:
        decisions = self._journal.of(sessions_of(request.request_id))
        return pb.RecallResponse(decisions=to_wire(decisions))

    async def Link(
        self, request_iterator: AsyncIterator[pb.LinkRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """See worker.proto. Ends when the router does, or hangs, or has another stream in its place."""
        hello = await self._first(request_iterator, wire.from_link_request, context)
        if not isinstance(hello, Hello) or hello.incarnation != self.me:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"this is {self.me.instance}.{self.me.life}"
            )
        await self._links.serve(hello.router, request_iterator, context)

    def _welcome(self) -> Welcome:
        spec = self._spec
        return Welcome(self.me, spec.fingerprint, context_tokens(self._runner), spec.vocab, os.getpid())

    async def _take(self, router: str, frame: RouterFrame) -> None:
        self._hear(router, frame)
        await self._keep_pace()

    def _hear(self, router: str, frame: RouterFrame) -> None:
        match frame:
            case Beat() | Hello():
                return
            case SeenBatch(seen):
                for one in seen:
                    self._intake.take(one.session, FromRouter(router, one))
            case Dead(incarnations):
                for incarnation in incarnations:
                    self._bury(incarnation)
            case Assign(prefill_tokens, decode_slots, drain):
                self._role = Budget(prefill_tokens, decode_slots)
                self._engine.assign(self._role, drain or self._leaving)
            case message:
                if isinstance(message, Start | Move) and message.destination is not None:
                    self._peers.meet(message.destination)
                grammar = message.context.params.grammar if isinstance(message, Start) else ""
                self._intake.take(message.session, FromRouter(router, message), grammar)

    def _bury(self, incarnation: Incarnation) -> None:
        self._dead[incarnation] = None
        if len(self._dead) > DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
        self._peers.forget(incarnation)
        self._transfers.forget(incarnation)
        self._engine.post_all(PeerLost(incarnation))

    async def Peer(
        self, request_iterator: AsyncIterator[pb.PeerRequest], context: grpc.aio.ServicerContext
    ) -> pb.PeerResponse:
        """See worker.proto."""
        hello = await self._first(request_iterator, wire.from_peer_request, context)
        if not isinstance(hello, PeerHello) or hello.to != self.me:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, f"this is {self.me.instance}.{self.me.life}"
            )
        sender = hello.sender.incarnation
        if sender not in self._dead:
            self._peers.meet(hello.sender)
        try:
            async for request in request_iterator:
                if sender in self._dead:  # a lease granted now would never hear of the death of its writer
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{sender} is dead")
                frame = wire.from_peer_request(request)
                if isinstance(frame, Turn | PairOffer):
                    self._transfers.hear(sender, frame)
                elif not isinstance(frame, PeerHello):
                    grammar = frame.context.params.grammar if isinstance(frame, Reserve) else ""
                    self._intake.take(frame.lease.session, FromPeer(sender, frame), grammar)
                    await self._keep_pace()
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.PeerResponse()

    async def _keep_pace(self) -> None:
        """Read no further while the engine is far behind; the streams' own windows then hold back the senders."""
        while self._engine.backlog + self._intake.backlog > IN_QUEUE and self._engine.alive:  # noqa: ASYNC110 - a thread empties it
            await asyncio.sleep(self._handover.heartbeat_s)

    async def _first(self, requests: AsyncIterator[Any], read: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            async with asyncio.timeout(self._handover.hung_after_s):
                return read(await anext(aiter(requests)))
        except (TimeoutError, StopAsyncIteration, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a stream begins with hello: {error}")


def _end_process(why: str, error: BaseException | None = None) -> None:
    """End at once, whatever hangs; the supervisor starts the next life."""
    logger.critical(why, exc_info=error)
    os._exit(70)


def _end_with(heart: asyncio.Task[None]) -> None:
    """An instance whose heart has a defect would watch over nothing any more."""
    if not heart.cancelled() and (error := heart.exception()) is not None:
        _end_process("the heart of the instance fails", error)
