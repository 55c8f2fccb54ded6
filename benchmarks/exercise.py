"""Trials run against a live cluster, heard at the wire: below the client, which would mend what comes twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from ..client import AsyncClient
from ..client.errors import PenstockError
from ..proto import inference_pb2 as pb
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .trials import Trial

STREAM_S = 120.0
"""Limit of one stream."""
MOVE_S = 30.0
"""Limit of one move."""


@dataclass
class Stream:
    """What the client received of one trial."""

    trial: Trial
    tokens: list[int] = field(default_factory=list)
    """Those from index 0 up to the first that is missing."""
    told: int = 0
    """One above the highest index that came."""
    duplicated: int = 0
    """Tokens whose index had come before."""
    cancelled: bool = False
    """The client left, as the trial says."""
    moves_done: int = 0
    recoveries: int = 0
    """How often it was prefilled again, as the router told at its end."""
    troubles: list[str] = field(default_factory=list)
    """Why it ended early, and why moves were not done."""
    maker: str = ""
    """The instance that owns it, as far as the client knows."""

    def take(self, first_index: int, ids: Sequence[int], maker: str) -> None:
        for index, token in enumerate(ids, first_index):
            self.told = max(self.told, index + 1)
            if index < len(self.tokens):
                self.duplicated += 1
            elif index == len(self.tokens):
                self.tokens.append(token)
        self.maker = maker

    @property
    def missing(self) -> int:
        """Tokens that should have come, in order: all where the client stayed, an error being no excuse."""
        wanted = self.told if self.cancelled else max(self.told, self.trial.max_tokens)
        return wanted - len(self.tokens)

    @property
    def moves_aborted(self) -> int:
        """Moves of the trial that were not done, for whatever reason."""
        return len(self.trial.moves) - self.moves_done

    @property
    def left(self) -> bool:
        """It is time for the client to leave."""
        return self.trial.cancel_after is not None and len(self.tokens) >= self.trial.cancel_after


async def exercise(
    address: str,
    trials: Sequence[Trial],
    decoders: Sequence[str],
    at_once: int,
    over: Callable[[], None] = lambda: None,
) -> list[Stream]:
    """Run all trials, `at_once` at a time, against the router at `address`, and move them among `decoders`.

    `over` is called as each ends. A stream's error is told in it, never raised.
    """
    free = asyncio.Semaphore(at_once)

    async def one(trial: Trial) -> Stream:
        async with free:
            stream = await _Run(trial, stub, client, decoders).go()
        over()
        return stream

    async with AsyncClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        return list(await asyncio.gather(*map(one, trials)))


class _Run:
    """One trial under way: its stream in one task, its moves one after another in a second."""

    def __init__(
        self, trial: Trial, stub: InferenceServiceStub, client: AsyncClient, decoders: Sequence[str]
    ):
        self.stream = Stream(trial)
        self._trial = trial
        self._stub = stub
        self._client = client
        self._decoders = decoders
        self._draw = random.Random(trial.seed)
        self._grown = asyncio.Condition()
        self._over = False

    async def go(self) -> Stream:
        moving = asyncio.create_task(self._move_all())
        try:
            await self._follow()
        finally:
            await self._tell(over=True)
            await moving
        return self.stream

    async def _follow(self) -> None:
        call: Any = self._stub.Generate(_request(self._trial), timeout=STREAM_S)
        try:
            async for response in call:
                await self._take(response)
                if self.stream.left:
                    self.stream.cancelled = True
                    return
        except grpc.aio.AioRpcError as error:
            self.stream.troubles.append(f"the stream ended: {error.details()} ({error.code().name})")
        finally:
            call.cancel()

    async def _take(self, response: pb.GenerateResponse) -> None:
        if response.HasField("delta"):
            delta = response.delta
            self.stream.take(delta.first_index, delta.token_ids, delta.instance)
            await self._tell()
        elif response.HasField("finished"):
            self.stream.recoveries = response.finished.usage.recoveries

    async def _tell(self, over: bool = False) -> None:
        async with self._grown:
            self._over = self._over or over
            self._grown.notify_all()

    async def _move_all(self) -> None:
        for index in self._trial.moves:
            async with self._grown:
                await self._grown.wait_for(lambda index=index: self._over or len(self.stream.tokens) > index)
            if self._over:
                return
            self.stream.moves_done += await self._move()

    async def _move(self) -> bool:
        destination = self._draw.choice([name for name in self._decoders if name != self.stream.maker])
        try:
            (move,) = await self._client.migrate(self._trial.request_id, destination, timeout_s=MOVE_S)
            reason = move.reason
        except PenstockError as error:
            move, reason = None, str(error)
        if move is None or not move.done:
            self.stream.troubles.append(f"not moved to {destination}: {reason}")
            return False
        self.stream.maker = destination
        return True


def _request(trial: Trial) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=trial.request_id,
        token_ids=pb.TokenIds(ids=trial.prompt),
        sampling=pb.SamplingParams(
            temperature=trial.temperature, seed=trial.seed, max_tokens=trial.max_tokens, ignore_eos=True
        ),
    )
