"""A router over toy instances, all in one event loop, and the words that tests about it need."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from toy_instance import FAST, VOCABULARY, ToyInstance

from penstock.handover.config import HandoverConfig
from penstock.proto import inference_pb2 as pb
from penstock.proto.inference_pb2_grpc import InferenceServiceStub
from penstock.router.config import ModelInfo, RouterConfig
from penstock.router.server import RouterServer

MODEL = ModelInfo(name="toy", context_tokens=2048, vocabulary=VOCABULARY)


@dataclass
class Fleet:
    """One router and its instances; every test leaves them with nothing held."""

    server: RouterServer
    deadlines: HandoverConfig = FAST
    instances: dict[str, ToyInstance] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def router(self):
        return self.server.router

    def told(self) -> None:
        """The router hears of the instances that live."""
        self.server.set_instances([one.view for one in self.instances.values()])

    async def add(self, name: str, **role) -> ToyInstance:
        told = {"cfg": self.deadlines, "vocabulary": self.server.model.vocabulary}
        one = self.instances[name] = ToyInstance(name, **told, **role)
        await one.start()
        self.told()
        return one

    async def linked(self) -> None:
        await until(lambda: all(view.alive for view in self.router.links.views()))

    async def settled(self) -> None:
        """Nothing is held anywhere."""
        await until(lambda: not self.router.sessions)
        await until(lambda: all(one.idle for one in self.instances.values() if not one.frozen))


async def until(true, seconds: float = 10.0) -> None:
    """Wait for a condition; fails with what it was."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  conditions of many parties, none of which has an event for it
            await asyncio.sleep(0.005)


async def swept() -> None:
    """gRPC's servers, which lie in cycles, die while their loop lives: later they would raise in `__del__`."""
    gc.collect()
    await asyncio.sleep(0)


@asynccontextmanager
async def fleet(
    roles: dict[str, dict],
    config: RouterConfig | None = None,
    model: ModelInfo = MODEL,
    settles: bool = True,
    deadlines: HandoverConfig = FAST,
) -> AsyncIterator[Fleet]:
    """A router over instances of these roles; on the way out nothing may be held."""
    server = RouterServer(config or RouterConfig(port=0, stop_s=0.5), model, None, deadlines)
    await server.start()
    here = Fleet(server, deadlines)
    try:
        for name, role in roles.items():
            await here.add(name, **role)
        await here.linked()
        yield here
        if settles:
            await here.settled()
    finally:
        await server.stop()
        for one in here.instances.values():
            await one.kill()
        await swept()


ONE_AND_TWO = {"a": {"prefill_tokens": 512}, "b": {"decode_slots": 8}, "c": {"decode_slots": 8}}
"""The default cluster: one instance prefills, two decode."""


def request(prompt=(1, 2, 3), max_tokens=20, **fields) -> pb.GenerateRequest:
    sampling = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0, "seed": 0}
    sampling |= fields.pop("sampling", {})
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=prompt),
        sampling={k: v for k, v in sampling.items() if v is not None},
        **fields,
    )


@dataclass
class Heard:
    """What a client heard, checked as it came: no gap, nothing twice."""

    started: pb.Started | None = None
    finished: pb.Finished | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    makers: list[str] = field(default_factory=list)
    first: int = 0

    def take(self, response: pb.GenerateResponse) -> None:
        match response.WhichOneof("event"):
            case "started":
                assert self.started is None
                self.started = response.started
            case "delta":
                assert self.started is not None and self.finished is None
                assert response.delta.first_index == self.first + len(self.ids)
                assert response.delta.token_ids
                self.ids.extend(response.delta.token_ids)
                self.text += response.delta.text
                if not self.makers or self.makers[-1] != response.delta.instance:
                    self.makers.append(response.delta.instance)
            case "finished":
                assert self.finished is None
                self.finished = response.finished


async def generate(
    address: str, asked: pb.GenerateRequest, after=None, heard=None, timeout: float = 20.0
) -> Heard:
    """Run a request to its end; `after` maps a number of tokens to a coroutine function to run when they are here."""
    heard, after = heard or Heard(), dict(after or {})
    async with grpc.aio.insecure_channel(address) as channel:
        async for response in InferenceServiceStub(channel).Generate(asked, timeout=timeout):
            heard.take(response)
            for count in sorted(after):
                if len(heard.ids) >= count:
                    await after.pop(count)()
    return heard


class ThreadedFleet:
    """A fleet whose loop runs in a thread; `run` runs a coroutine there."""

    def __init__(self, **options):
        self.options = options
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def __enter__(self):
        self.thread.start()
        self.stack = AsyncExitStack()
        self.fleet = self.run(self.stack.enter_async_context(fleet(ONE_AND_TWO, **self.options)))
        return self

    def __exit__(self, *error):
        self.run(self.stack.__aexit__(*error))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
