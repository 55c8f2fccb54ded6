"""Trials run against a live cluster, heard at the wire: below the client, which would mend what comes twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import grpc.aio

from ..client import AsyncClient
from ..client.errors import PenstockError
from ..handover.values import Logprobs, SamplingParams
from ..proto import inference_pb2
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .trials import Trial

STREAM_S = 120.0
"""Limit of one stream."""
MOVE_S = 30.0
"""Limit of one move."""
MOVE_TOKENS = 32
"""So many come at most while a move is made; where a stream ends sooner, or its client leaves, it may not be done."""
NEUTRAL = asdict(SamplingParams())


@dataclass
class Stream:
    """What the client received of one choice of a trial."""

    trial: Trial
    choice: int = 0
    tokens: list[int] = field(default_factory=list)
    """Those from index 0 up to the first that is missing."""
    logprobs: list[Logprobs] = field(default_factory=list)
    """Of those tokens, as far as any were told."""
    prompts: list[tuple[Logprobs, ...]] = field(default_factory=list)
    """What was told of the prompt, each time."""
    told: int = 0
    """One above the highest index that came."""
    duplicated: int = 0
    """Tokens whose index had come before."""
    end: int = inference_pb2.FINISH_REASON_UNSPECIFIED
    """Why it ended, as the router told."""
    cancelled: bool = False
    """The client left, as the trial says."""
    moved: list[bool] = field(default_factory=list)
    """What became of the moves that were asked for, in their order."""
    recoveries: int = 0
    """How often it was prefilled again, as the router told at its end."""
    troubles: list[str] = field(default_factory=list)
    """Why it ended early, and why moves were not done."""
    maker: str = ""
    """The instance that owns it, as far as the client knows."""

    def take(self, delta: inference_pb2.Delta) -> None:
        for place, token in enumerate(delta.token_ids):
            index = delta.first_index + place
            self.told = max(self.told, index + 1)
            if index < len(self.tokens):
                self.duplicated += 1
            elif index == len(self.tokens):
                self.tokens.append(token)
                self.logprobs += map(_logprobs, delta.logprobs[place : place + 1])
        if delta.HasField("prompt"):
            self.prompts.append(tuple(map(_logprobs, delta.prompt.logprobs)))
        self.maker = delta.instance

    @property
    def missing(self) -> int:
        """Tokens that should have come, in order: all where the client stayed, an error being no excuse."""
        over = self.cancelled or self.stopped
        return (self.told if over else max(self.told, self.trial.max_tokens)) - len(self.tokens)

    @property
    def stopped(self) -> bool:
        """It ended with a token that ends it, or as a constraint let it."""
        if self.end != inference_pb2.FINISH_REASON_STOP or not self.tokens:
            return False
        return self.trial.held is not None or self.tokens[-1] in self.trial.shape.stop_token_ids

    @property
    def moves(self) -> tuple[int, ...]:
        return self.trial.moves_of(self.choice)

    @property
    def moves_done(self) -> int:
        return sum(self.moved)

    @property
    def moves_late(self) -> int:
        """Moves that were not done, and were asked for when the stream was about to end."""
        return sum(index + MOVE_TOKENS > len(self.tokens) for index in self._undone)

    @property
    def moves_aborted(self) -> int:
        """Moves that were not done though there was time, for whatever reason."""
        return len(self._undone) - self.moves_late

    @property
    def _undone(self) -> list[int]:
        asked = zip_longest(self.moves, self.moved, fillvalue=False)
        return [index for index, done in asked if not done]

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

    `over` is called as each ends. Each choice has a stream; its error is told in it, never raised.
    """
    free = asyncio.Semaphore(at_once)

    async def one(trial: Trial) -> list[Stream]:
        async with free:
            streams = await _Run(trial, stub, client, decoders).go()
        over()
        return streams

    async with AsyncClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        return [stream for streams in await asyncio.gather(*map(one, trials)) for stream in streams]


class _Run:
    """One trial under way: its streams in one task, the moves of each choice one after another in others."""

    def __init__(
        self, trial: Trial, stub: InferenceServiceStub, client: AsyncClient, decoders: Sequence[str]
    ):
        self.streams = [Stream(trial, choice) for choice in range(trial.choices)]
        self._trial = trial
        self._stub = stub
        self._client = client
        self._decoders = decoders
        self._draw = random.Random(trial.seed)
        self._grown = asyncio.Condition()
        self._over = False

    async def go(self) -> list[Stream]:
        moving = [asyncio.create_task(self._move_all(stream)) for stream in self.streams]
        try:
            await self._follow()
        finally:
            await self._tell(over=True)
            await asyncio.gather(*moving)
        return self.streams

    async def _follow(self) -> None:
        call: Any = self._stub.Generate(request_of(self._trial), timeout=STREAM_S)
        try:
            async for response in call:
                await self._take(response)
                if self.streams[0].left:
                    for stream in self.streams:
                        stream.cancelled = True
                    return
        except grpc.aio.AioRpcError as error:
            self.streams[0].troubles.append(f"the stream ended: {error.details()} ({error.code().name})")
        finally:
            call.cancel()

    async def _take(self, response: inference_pb2.GenerateResponse) -> None:
        if response.HasField("delta"):
            delta = response.delta
            self.streams[delta.choice].take(delta)
            await self._tell()
        elif response.HasField("finished"):
            stream = self.streams[response.finished.choice]
            stream.recoveries = response.finished.usage.recoveries
            stream.end = response.finished.reason
            await self._tell()

    async def _tell(self, over: bool = False) -> None:
        async with self._grown:
            self._over = self._over or over
            self._grown.notify_all()

    async def _move_all(self, stream: Stream) -> None:
        for index in stream.moves:
            async with self._grown:
                await self._grown.wait_for(
                    lambda index=index: self._ended(stream) or len(stream.tokens) > index
                )
            if self._ended(stream):
                return
            stream.moved.append(await self._move(stream))

    def _ended(self, stream: Stream) -> bool:
        return self._over or bool(stream.end)

    async def _move(self, stream: Stream) -> bool:
        destination = self._draw.choice([name for name in self._decoders if name != stream.maker])
        try:
            (move,) = await self._client.migrate(
                self._trial.request_id, destination, stream.choice, timeout_s=MOVE_S
            )
            reason = move.reason
        except PenstockError as error:
            move, reason = None, str(error)
        if move is None or not move.done:
            stream.troubles.append(f"not moved to {destination}: {reason}")
            return False
        stream.maker = destination
        return True


def _logprobs(told: inference_pb2.Logprobs) -> Logprobs:
    return Logprobs(told.logprob, tuple((one.token_id, one.logprob) for one in told.top))


def request_of(trial: Trial) -> inference_pb2.GenerateRequest:
    """What a client asks for it."""
    shape = {name: value for name, value in asdict(trial.shape).items() if value != NEUTRAL[name]}
    shape |= {"logit_bias": dict(trial.shape.logit_bias), "n": trial.choices}
    shape |= {"temperature": trial.temperature, "seed": trial.seed}
    shape |= {"max_tokens": trial.max_tokens, "ignore_eos": trial.held is None}
    shape |= {} if trial.held is None else {"structured": trial.held.field}
    return inference_pb2.GenerateRequest(
        request_id=trial.request_id,
        tenant=trial.tenant,
        token_ids=inference_pb2.TokenIds(ids=trial.prompt),
        sampling=inference_pb2.SamplingParams(**shape),
    )
