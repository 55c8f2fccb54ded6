"""The router's gRPC server: inference for clients, control for operators, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ..handover.channel import CHANNEL
from ..handover.config import HandoverConfig
from ..handover.values import End, Logprobs
from ..policy.state import InstanceView
from ..proto import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc
from .attach import attach
from .config import ModelInfo, RouterConfig
from .constraints import Constraints
from .malformed import RefuseMalformed
from .output import Output, Piece
from .refusal import DETAILS_KEY, Refused
from .router import Router
from .session import LiveSession
from .tokenizer import Tokenizer
from .vital import vital
from .wire import Call, read_request

logger = logging.getLogger(__name__)

CONTROL_S = 60.0
"""Limit of a forwarded control call whose caller set none."""

OTHER_CALLS = 256
"""Calls at once beside those of open sessions: being read, of operators, about health."""

LAST_WORDS_S = 1.0
"""For streams that are ended by a stop to say so."""

REASONS = {End.STOP: inference_pb2.FINISH_REASON_STOP, End.LENGTH: inference_pb2.FINISH_REASON_LENGTH}
SERVICES = ("penstock.inference.v1.InferenceService", "penstock.control.v1.ControlService")


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Streams of tokens. A call that ends for whatever reason, the client's leave included, frees its sessions."""

    def __init__(self, router: Router, tokenizer: Tokenizer | None, constraints: Constraints | None):
        self._router = router
        self._tokenizer = tokenizer
        self._constraints = constraints

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:
        try:
            calls = await read_request(request, self._router.model, self._tokenizer, self._constraints)
            ends = self._router.model.end_tokens
            outputs = [Output(call, ends, self._tokenizer) for call in calls]
            await self._answer(outputs, Writer(context, self._router.config.client_wait_s))
        except Refused as refused:
            logger.info("refused: %s: %s", refused.code.name, refused.message)
            await refused.abort(context)

    async def _answer(self, outputs: Sequence[Output], writer: Writer) -> None:
        """All choices, interleaved; one that was resumed with all its tokens has nothing left to do."""
        running = [output for output in outputs if output.end is None]
        sessions = self._router.open([output.call for output in running]) if running else []
        try:
            await writer.write(self._started(outputs[0].call))
            for output in outputs:
                if output.end is not None:
                    await writer.write(_finished(output, None))
            pairs = zip(running, sessions, strict=True)
            await _together([self._follow(output, session, writer) for output, session in pairs])
        finally:
            for session in sessions:
                self._router.close(session)

    async def _follow(self, output: Output, session: LiveSession, writer: Writer) -> None:
        """One choice to its end. A stop string closes the session, which tells the owner."""
        async with aclosing(session.deltas()) as deltas:
            async for delta in deltas:
                await writer.write(_delta(output.call, output.take(delta)))
                if output.end is not None:
                    break
        self._router.close(session)
        await writer.write(_finished(output, session))

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Any
    ) -> inference_pb2.ListModelsResponse:
        model = self._router.model
        named = inference_pb2.Model(
            name=model.name, context_tokens=model.context_tokens, vocabulary=model.vocabulary
        )
        return inference_pb2.ListModelsResponse(models=[named])

    def _started(self, call: Call) -> inference_pb2.GenerateResponse:
        started = inference_pb2.Started(
            request_id=call.request_id,
            model=self._router.model.name,
            seed=call.params.seed,
            attempt=call.attempt,
            prompt_tokens=len(call.prompt),
            max_tokens=call.params.max_tokens,
        )
        return inference_pb2.GenerateResponse(started=started)


class Writer:
    """A call's stream for several that write to it: one message at a time.

    A client that reads nothing is not waited for without end: its sessions keep their places until `write` returns.
    """

    def __init__(self, context: Any, limit_s: float):
        self._context = context
        self._limit_s = limit_s
        self._turn = asyncio.Lock()

    async def write(self, response: inference_pb2.GenerateResponse) -> None:
        """`Refused` where the client takes nothing for the limit."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._limit_s):
                    await self._context.write(response)
            except TimeoutError:
                message = f"The client read nothing for {self._limit_s:g} s."
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message) from None


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run them all; the first error ends the others and is raised."""
    if len(works) == 1:
        await works[0]
        return
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _delta(call: Call, piece: Piece) -> inference_pb2.GenerateResponse:
    made = inference_pb2.Delta(
        choice=call.params.choice,
        first_index=piece.first_index,
        token_ids=piece.token_ids,
        text=piece.text,
        instance=piece.instance,
        logprobs=map(_logprobs, piece.logprobs),
    )
    if piece.prompt_logprobs is not None:
        made.prompt.CopyFrom(_prompt(call, piece.prompt_logprobs))
    return inference_pb2.GenerateResponse(delta=made)


def _prompt(call: Call, logprobs: tuple[Logprobs, ...]) -> inference_pb2.Prompt:
    told = inference_pb2.Prompt(logprobs=map(_logprobs, logprobs))
    if call.echo:
        told.token_ids.extend(call.prompt)
        told.text = call.prompt_text
    return told


def _logprobs(logprobs: Logprobs) -> inference_pb2.Logprobs:
    top = (inference_pb2.Alternative(token_id=token, logprob=logprob) for token, logprob in logprobs.top)
    return inference_pb2.Logprobs(logprob=logprobs.own, top=top)


def _finished(output: Output, session: LiveSession | None) -> inference_pb2.GenerateResponse:
    assert output.end is not None
    usage = inference_pb2.Usage(
        prompt_tokens=len(output.call.prompt),
        completion_tokens=output.tokens,
        handovers=session.handovers if session else 0,
        recoveries=session.recoveries if session else 0,
    )
    finished = inference_pb2.Finished(
        choice=output.call.params.choice, reason=REASONS[output.end], usage=usage
    )
    return inference_pb2.GenerateResponse(finished=finished)


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """Hands every call to the controller, and its answer back."""

    def __init__(self, controller: str | None):
        self._channel = grpc.aio.insecure_channel(controller, options=CHANNEL) if controller else None

    async def GetCluster(
        self, request: control_pb2.GetClusterRequest, context: Any
    ) -> control_pb2.GetClusterResponse:
        return await self._forward("GetCluster", request, context)

    async def MigrateRequest(
        self, request: control_pb2.MigrateRequestRequest, context: Any
    ) -> control_pb2.MigrateRequestResponse:
        return await self._forward("MigrateRequest", request, context)

    async def ExplainRequest(
        self, request: control_pb2.ExplainRequestRequest, context: Any
    ) -> control_pb2.ExplainRequestResponse:
        return await self._forward("ExplainRequest", request, context)

    async def WatchCluster(self, request: control_pb2.WatchClusterRequest, context: Any) -> None:
        await self._stream("WatchCluster", request, context)

    async def DrainInstance(self, request: control_pb2.DrainInstanceRequest, context: Any) -> None:
        await self._stream("DrainInstance", request, context)

    async def FlipInstance(self, request: control_pb2.FlipInstanceRequest, context: Any) -> None:
        await self._stream("FlipInstance", request, context)

    async def RestartInstances(self, request: control_pb2.RestartInstancesRequest, context: Any) -> None:
        await self._stream("RestartInstances", request, context)

    async def ScalePool(self, request: control_pb2.ScalePoolRequest, context: Any) -> None:
        await self._stream("ScalePool", request, context)

    async def _stream(self, name: str, request: Any, context: Any) -> None:
        """The controller says something every few seconds, and a caller takes it, or the call ends."""
        method = await self._method(name, context)
        call = method(request, timeout=context.time_remaining())
        responses = aiter(call)
        try:
            while True:
                async with asyncio.timeout(CONTROL_S):
                    response = await anext(responses, None)
                    if response is None:
                        return
                    await context.write(response)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"Nothing was said for {CONTROL_S:g} s.")
        except grpc.aio.AioRpcError as error:
            await _abort_as(error, context)
        finally:
            call.cancel()

    async def _forward(self, name: str, request: Any, context: Any) -> Any:
        method = await self._method(name, context)
        left_s = context.time_remaining()
        try:
            return await method(request, timeout=CONTROL_S if left_s is None else left_s)
        except grpc.aio.AioRpcError as error:
            await _abort_as(error, context)

    async def _method(self, name: str, context: Any) -> Any:
        if self._channel is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "This router has no controller.")
            raise AssertionError("abort returned")
        return getattr(control_pb2_grpc.ControlServiceStub(self._channel), name)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close(None)


async def _abort_as(error: grpc.aio.AioRpcError, context: Any) -> None:
    """End the call with the controller's own word."""
    details = [(key, value) for key, value in _pairs(error) if key == DETAILS_KEY]
    message = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        message = f"the controller is away: {message}"
    await context.abort(error.code(), message, trailing_metadata=tuple(details))


def _pairs(error: grpc.aio.AioRpcError) -> Any:
    """The trailing metadata as pairs, which the stubs do not know it to be."""
    return error.trailing_metadata() or ()


class RouterServer:
    """A router that listens. `controller` is the address of the controller to attach to; a test may do without."""

    def __init__(
        self,
        config: RouterConfig,
        model: ModelInfo,
        controller: str | None,
        handover: HandoverConfig | None = None,
        name: str = "router-0",
    ):
        self.config = config
        self.model = model
        self.name = name
        self._controller = controller
        self._handover = handover or HandoverConfig()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Listen, attach, and return the address. Raises `ValueError` where the port is taken; then it may be tried
        again, for nothing has begun."""
        tokenizer = Tokenizer(self.model.tokenizer) if self.model.tokenizer else None
        self._server = grpc.aio.server(
            interceptors=(RefuseMalformed(),),
            options=(("grpc.so_reuseport", 0),),
            maximum_concurrent_rpcs=self.config.max_sessions + OTHER_CALLS,
        )
        self.address = f"{self.config.host}:{self._bind()}"
        self.router = Router(self.name, self.config, self._handover, self.model)
        self._control = ControlServicer(self._controller)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._constraints = Constraints(self.model, self.model.tokenizer) if self.model.tokenizer else None
        inference = InferenceServicer(self.router, tokenizer, self._constraints)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, self._server)
        control_pb2_grpc.add_ControlServiceServicer_to_server(self._control, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._set_health(False)
        await self._server.start()
        self._tasks.append(vital(self._watch_health(), "health"))
        if self._controller:
            attached = attach(self.router, self._controller, self.address)
            self._tasks.append(vital(attached, "attachment"))
        logger.info("router %s serves %s at %s", self.name, self.model.name, self.address)
        return self.address

    def set_instances(self, listed: list[InstanceView]) -> None:
        """What the controller tells otherwise."""
        self.router.set_instances(listed)

    async def stop(self) -> None:
        """Take no more, let open streams end for `stop_s`, then end them with UNAVAILABLE and leave nothing behind."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(self.config.stop_s + LAST_WORDS_S))
        await self.router.drained(self.config.stop_s)
        await self._control.close()  # who watches the cluster would watch it for ever
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.router.stop()
        await stopping
        if self._constraints is not None:
            await self._constraints.close()

    def _bind(self) -> int:
        try:
            return self._server.add_insecure_port(f"{self.config.host}:{self.config.port}")
        except RuntimeError:
            at = f"{self.config.host}:{self.config.port}"
            raise ValueError(f"The router cannot listen on {at}: the port is in use or not ours.") from None

    async def _watch_health(self) -> None:
        """SERVING while a request would find instances for both of its phases."""
        said = False
        while True:
            await asyncio.sleep(self._handover.heartbeat_s)
            if self.router.serving() is not said:
                said = not said
                await self._set_health(said)

    async def _set_health(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)
