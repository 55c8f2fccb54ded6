"""Token streams of a running cluster, each token stamped as the client takes it: the raw stub, and little else."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from typing import Any

import grpc.aio

from ..client import AsyncClient, PenstockError
from ..proto import inference_pb2 as pb
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .gaps import Arrival

STREAM_S = 600.0
"""Limit of one stream."""
GROW_S = 60.0
"""Limit of a wait for tokens."""
MOVE_S = 30.0
RETRY_S = 0.02
RETRIES = 20
"""The controller learns of an owner at the router's next heartbeat."""


class TokenStream:
    """One greedy request over random token ids; it runs until it is closed."""

    def __init__(self, stub: InferenceServiceStub, name: str, prompt_tokens: int, most: int, vocabulary: int):
        draw = random.Random(name)
        self.name = name
        self.prompt_tokens = prompt_tokens
        self.arrivals: list[Arrival] = []
        self.tokens = 0
        self._grown: tuple[int, asyncio.Future[None]] | None = None
        request = pb.GenerateRequest(
            request_id=name,
            token_ids=pb.TokenIds(ids=[draw.randrange(2, vocabulary) for _ in range(prompt_tokens)]),
            sampling=pb.SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True),
        )
        self._call: Any = stub.Generate(request, timeout=STREAM_S)
        self._task = asyncio.create_task(self._follow(), name=name)

    @property
    def instance(self) -> str:
        """The instance that made the latest token."""
        return self.arrivals[-1].instance

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.tokens

    async def reach(self, tokens: int) -> None:
        """Wait until so many tokens came. An error that ended the stream is raised here."""
        if self._task.done():
            self._task.result()
            raise AssertionError(f"{self.name} ended after {self.tokens} tokens")
        if self.tokens < tokens:
            grown = asyncio.get_running_loop().create_future()
            self._grown = tokens, grown
            async with asyncio.timeout(GROW_S):
                await asyncio.wait([grown, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not grown.done():
                await self.reach(tokens)

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        async for response in self._call:
            now = time.perf_counter()
            if response.HasField("delta"):
                delta = response.delta
                count = len(delta.token_ids)
                assert delta.first_index == self.tokens, f"{self.name}: token {self.tokens} did not come next"
                self.arrivals.append(Arrival(now, self.tokens, count, delta.instance))
                self.tokens += count
                if self._grown is not None and self.tokens >= self._grown[0]:
                    self._grown[1].set_result(None)
                    self._grown = None


class Streams:
    """Streams and moves on one cluster. `async with` it: all streams are closed at the end."""

    def __init__(self, address: str, vocabulary: int):
        self._address = address
        self._vocabulary = vocabulary
        self._names = (f"bench-{secrets.token_hex(4)}-{number}" for number in itertools.count(1))
        self._open: set[TokenStream] = set()

    async def __aenter__(self) -> Streams:
        self.client = AsyncClient(self._address)
        self._channel = grpc.aio.insecure_channel(self._address)
        self._stub = InferenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*map(self.close, list(self._open)))
        await self._channel.close(None)
        await self.client.close()

    def begin(self, prompt_tokens: int, most: int) -> TokenStream:
        """Start a stream of up to `most` tokens."""
        stream = TokenStream(self._stub, next(self._names), prompt_tokens, most, self._vocabulary)
        self._open.add(stream)
        return stream

    async def close(self, stream: TokenStream) -> None:
        self._open.discard(stream)
        await stream.close()

    async def move(self, stream: TokenStream, destination: str, mode: str = "live") -> str:
        """Move it, and return once it is there: empty, or why it was not moved."""
        for _ in range(RETRIES):
            try:
                (move,) = await self.client.migrate(stream.name, destination, mode=mode, timeout_s=MOVE_S)
                return move.reason
            except PenstockError as error:
                if error.code not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                    raise
                reason = str(error)
                await asyncio.sleep(RETRY_S)
        return reason
