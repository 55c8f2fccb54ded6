"""The client for an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Unpack

import grpc
import grpc.aio

from ..proto import control_pb2, inference_pb2
from ..proto.control_pb2_grpc import ControlServiceStub
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .address import resolve, target
from .cluster import (
    Cluster,
    Explanation,
    Move,
    Progress,
    from_cluster,
    from_explanation,
    from_moves,
    from_progress,
    from_watch,
    migrate_request,
)
from .errors import from_rpc
from .events import Completion, Event, Model, completion, completions, from_response
from .request import Attempts, Message, Options, build
from .sync import ASK_S, CHANGE_S, CHANNEL, GENERATE_S, MIGRATE_S, T


class AsyncClient:
    """`Client`, for an event loop: construct it inside the one that uses it. What methods do is told there."""

    def __init__(self, address: str | None = None):
        self.address = resolve(address)
        self._channel = grpc.aio.insecure_channel(target(self.address), options=CHANNEL)
        self._inference = InferenceServiceStub(self._channel)
        self._control = ControlServiceStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Event, None]:
        """Stream one completion. To leave early use `contextlib.aclosing`, or cancel the task: the request ends too."""
        attempts = Attempts(build(prompt, messages, request_id, model, options))
        return self._events(attempts, timeout_s, time.monotonic() + timeout_s)

    async def complete(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> Completion:
        """The one completion, whole."""
        events = self.generate(
            prompt, messages=messages, request_id=request_id, model=model, timeout_s=timeout_s, **options
        )
        return completion([event async for event in events])

    async def complete_all(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> tuple[Completion, ...]:
        """All `n` completions, whole, in order of choices."""
        events = self.generate(
            prompt, messages=messages, request_id=request_id, model=model, timeout_s=timeout_s, **options
        )
        return completions([event async for event in events])

    async def models(self, timeout_s: float = ASK_S) -> tuple[Model, ...]:
        said = await self._ask(self._inference.ListModels, inference_pb2.ListModelsRequest(), timeout_s)
        return tuple(Model(model.name, model.context_tokens, model.vocabulary) for model in said.models)

    async def cluster(self, sessions: bool = False, timeout_s: float = ASK_S) -> Cluster:
        request = control_pb2.GetClusterRequest(sessions=sessions)
        return from_cluster(await self._ask(self._control.GetCluster, request, timeout_s))

    async def migrate(
        self,
        request_id: str,
        destination: str | None = None,
        choice: int | None = None,
        mode: str = "live",
        timeout_s: float = MIGRATE_S,
    ) -> tuple[Move, ...]:
        request = migrate_request(request_id, destination, choice, mode)
        return from_moves(await self._ask(self._control.MigrateRequest, request, timeout_s))

    async def explain(self, request_id: str, timeout_s: float = ASK_S) -> Explanation:
        request = control_pb2.ExplainRequestRequest(request_id=request_id)
        return from_explanation(await self._ask(self._control.ExplainRequest, request, timeout_s))

    def watch(self, sessions: bool = False, timeout_s: float | None = None) -> AsyncGenerator[Cluster, None]:
        request = control_pb2.WatchClusterRequest(sessions=sessions)
        return self._stream(self._control.WatchCluster, request, from_watch, timeout_s)

    def drain(self, instance: str, timeout_s: float = CHANGE_S) -> AsyncGenerator[Progress, None]:
        request = control_pb2.DrainInstanceRequest(instance=instance)
        return self._stream(self._control.DrainInstance, request, from_progress, timeout_s)

    def flip(self, instance: str, pool: str, timeout_s: float = CHANGE_S) -> AsyncGenerator[Progress, None]:
        request = control_pb2.FlipInstanceRequest(instance=instance, pool=pool)
        return self._stream(self._control.FlipInstance, request, from_progress, timeout_s)

    def restart(
        self, instances: Sequence[str] = (), timeout_s: float = CHANGE_S
    ) -> AsyncGenerator[Progress, None]:
        request = control_pb2.RestartInstancesRequest(instances=instances)
        return self._stream(self._control.RestartInstances, request, from_progress, timeout_s)

    def scale(self, pool: str, instances: int, timeout_s: float = CHANGE_S) -> AsyncGenerator[Progress, None]:
        request = control_pb2.ScalePoolRequest(pool=pool, instances=instances)
        return self._stream(self._control.ScalePool, request, from_progress, timeout_s)

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _events(
        self, attempts: Attempts, timeout_s: float, deadline: float
    ) -> AsyncGenerator[Event, None]:
        while True:
            call: Any = self._inference.Generate(
                attempts.request(), timeout=max(0.0, deadline - time.monotonic())
            )
            try:
                async for response in call:
                    event = attempts.take(from_response(response))
                    if event is not None:
                        yield event
                return
            except grpc.RpcError as error:
                pause_s = attempts.retry_after_s(from_rpc(error, self.address, timeout_s))
            finally:
                call.cancel()  # frees the request where the caller has left
            await asyncio.sleep(pause_s)

    async def _stream(
        self, method: Callable[..., Any], request: Any, read: Callable[[Any], T], timeout_s: float | None
    ) -> AsyncGenerator[T, None]:
        call = method(request, timeout=timeout_s)
        try:
            async for response in call:
                yield read(response)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from None
        finally:
            call.cancel()

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        try:
            return await method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from None
