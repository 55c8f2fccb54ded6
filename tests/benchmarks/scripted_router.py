"""A router of a script: what it answers is set by the test, and what it was asked stands in `asked`."""

import asyncio

import grpc
import grpc.aio

from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc as rpc
from penstock.router.refusal import overloaded

MODEL = pb.Model(name="scripted", context_tokens=4096, vocabulary=100)


class Scripted(rpc.InferenceServiceServicer):
    """Gives each request its tokens once `answers_after` were asked; refuses those of the tenant `refused`."""

    def __init__(self, answers_after: int = 0):
        self._answers_after = answers_after
        self._enough = asyncio.Event()
        self.asked: list[pb.GenerateRequest] = []

    async def ListModels(self, request, context):
        return pb.ListModelsResponse(models=[MODEL])

    async def Generate(self, request, context):
        self.asked.append(request)
        if len(self.asked) >= self._answers_after:
            self._enough.set()
        if request.tenant == "refused":
            await overloaded("no room", 1.5).abort(context)
        await context.write(pb.GenerateResponse(started=pb.Started(request_id=request.request_id)))
        await self._enough.wait()
        for index in range(request.sampling.max_tokens):
            await context.write(
                pb.GenerateResponse(delta=pb.Delta(first_index=index, token_ids=[7], instance="decode-0"))
            )
        if request.tenant == "failing":
            await context.abort(grpc.StatusCode.INTERNAL, "a defect")
        finished = pb.Finished(reason=pb.FINISH_REASON_LENGTH)
        await context.write(pb.GenerateResponse(finished=finished))


def against(script: Scripted, work, seconds: float = 20.0):
    """What `work(address)` gives, run against a router that plays the script."""

    async def run():
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        rpc.add_InferenceServiceServicer_to_server(script, server)
        await server.start()
        try:
            async with asyncio.timeout(seconds):
                return await work(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(run())
