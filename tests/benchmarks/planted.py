"""Faults planted into the classes that a cluster's actors host."""

import asyncio
import itertools
from contextlib import suppress

import penstock.engine.build
import penstock.engine.residence
import penstock.engine.transfers
import penstock.router.server
from penstock.cluster.instance import Instance
from penstock.engine.blocks import BlockPool
from penstock.engine.local import LocalWindow
from penstock.policy import prefix
from penstock.router.server import InferenceServicer, RouterServer

LINGER_S = 0.2
AFTER = 4
"""The fault comes with the call of this number, so that the cluster has started well."""


class AlteringWindow(LocalWindow):
    """A transport that alters a block of every write from `AFTER` on: it writes another one's bytes there."""

    calls = itertools.count(1)

    def write(self, cache, source_ids, destination_ids, layers=slice(None)):
        super().write(cache, source_ids, destination_ids, layers)
        if source_ids and next(self.calls) >= AFTER:
            other = (source_ids[0] + 1) % cache.layout.blocks
            super().write(cache, [other], destination_ids[:1], layers)


class KeepingPool(BlockPool):
    """A pool that keeps one block of those that it is to free."""

    calls = itertools.count(1)

    def free(self, key, *names):
        if next(self.calls) == AFTER:
            self.table(key).pop()
        super().free(key, *names)


class EchoingServicer(InferenceServicer):
    """A router that sends a delta of each request twice, from `AFTER` on."""

    calls = itertools.count(1)

    async def Generate(self, request, context):
        await super().Generate(request, _Echo(context, next(self.calls) >= AFTER))


class LingeringServicer(InferenceServicer):
    """A router that notices only a while later that a client has left."""

    async def Generate(self, request, context):
        answering = asyncio.create_task(super().Generate(request, _Deaf(context)))
        try:
            await asyncio.shield(answering)
        except asyncio.CancelledError:
            await asyncio.sleep(LINGER_S)
            answering.cancel()
            raise


class _Deaf:
    """A client that takes everything, even after it has left."""

    def __init__(self, context):
        self._context = context

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def write(self, response):
        with suppress(asyncio.CancelledError, Exception):
            await self._context.write(response)


class _Echo:
    def __init__(self, context, due):
        self._context = context
        self._due = due

    def __getattr__(self, name):
        return getattr(self._context, name)

    async def write(self, response):
        await self._context.write(response)
        if self._due and response.HasField("delta") and response.delta.token_ids:
            self._due = False
            await self._context.write(response)


class AlteringInstance(Instance):
    def __init__(self, settings):
        penstock.engine.transfers.LocalWindow = AlteringWindow
        super().__init__(settings)


class KeepingInstance(Instance):
    def __init__(self, settings):
        penstock.engine.build.BlockPool = KeepingPool
        super().__init__(settings)


class SharingInstance(Instance):
    """Its cache names blocks by their tokens alone."""

    def __init__(self, settings):
        penstock.engine.residence._secret = lambda fingerprint, salt: prefix.secret(fingerprint, "")
        super().__init__(settings)


class EchoingRouter(RouterServer):
    def __init__(self, *arguments):
        penstock.router.server.InferenceServicer = EchoingServicer
        super().__init__(*arguments)


class LingeringRouter(RouterServer):
    def __init__(self, *arguments):
        penstock.router.server.InferenceServicer = LingeringServicer
        super().__init__(*arguments)
