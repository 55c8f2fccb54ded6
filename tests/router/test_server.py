"""The router's server: health, text, control through it, its controller's comings and goings, and its end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from test_tokenizer import byte_level
from toy_fleet import MODEL, ONE_AND_TWO, Heard, fleet, generate, request, swept, until
from toy_instance import FAST, ToyInstance, output

from penstock.client.errors import from_rpc
from penstock.handover.config import HandoverConfig
from penstock.handover.frames import Welcome
from penstock.policy.fairness import Slo
from penstock.proto import (
    control_pb2,
    control_pb2_grpc,
    inference_pb2,
    router_pb2,
    router_pb2_grpc,
)
from penstock.router import main
from penstock.router.config import RouterConfig
from penstock.router.refusal import Refused
from penstock.router.server import RouterServer
from penstock.router.tokenizer import Tokenizer
from penstock.router.wire import read_request


async def health(address):
    async with grpc.aio.insecure_channel(address) as channel:
        said = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return said.status == health_pb2.HealthCheckResponse.SERVING


async def until_health(address, serving):
    for _ in range(500):
        if await health(address) is serving:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"health never said {serving}")


def test_health_is_serving_only_while_both_phases_have_an_instance():
    async def run():
        async with fleet({"a": {"prefill_tokens": 512}}) as here:
            await asyncio.sleep(3 * FAST.heartbeat_s)
            assert not await health(here.address)
            b = await here.add("b", decode_slots=8)
            await here.linked()
            await until_health(here.address, True)
            await b.kill()
            await until_health(here.address, False)

    asyncio.run(run())


def test_reflection_names_the_services():
    async def run():
        async with fleet({}) as here, grpc.aio.insecure_channel(here.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            async for said in stub.ServerReflectionInfo(iter(asked), timeout=5):
                names = {service.name for service in said.list_services_response.service}
            assert {"penstock.inference.v1.InferenceService", "penstock.control.v1.ControlService"} <= names

    asyncio.run(run())


def test_text_goes_in_and_comes_out(tmp_path):
    tokenizer = byte_level(tmp_path / "tokenizer.json")
    model = replace(MODEL, tokenizer=tmp_path / "tokenizer.json")

    async def run():
        async with fleet(ONE_AND_TWO, model=model) as here:
            prompt = await tokenizer.encode("déjà vu")
            sampling = {"max_tokens": 40, "ignore_eos": True, "temperature": 0, "seed": 3}
            heard = await generate(
                here.address, inference_pb2.GenerateRequest(text="déjà vu", sampling=sampling)
            )
            assert heard.ids == output(prompt, 40, seed=3)
            assert heard.text == tokenizer.decode(heard.ids)

    asyncio.run(run())


def test_a_text_that_no_context_holds_is_refused_before_it_is_encoded(tmp_path, monkeypatch):
    tokenizer = byte_level(tmp_path / "tokenizer.json")
    model = replace(MODEL, tokenizer=tmp_path / "tokenizer.json")
    most = model.context_tokens * tokenizer.longest_token
    for text in ("a" * (most + 1), "a" * most):
        with monkeypatch.context() as patched, pytest.raises(Refused) as refused:
            if len(text) > most:
                patched.delattr(Tokenizer, "encode")
            asyncio.run(read_request(inference_pb2.GenerateRequest(text=text), model, tokenizer))
        assert (refused.value.code, refused.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "text")


def test_a_refusal_names_the_field_in_rich_details():
    async def run():
        async with fleet({}) as here:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, request(prompt=()))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            (raw,) = [
                value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"
            ]
            bad = error_details_pb2.BadRequest()
            assert status_pb2.Status.FromString(raw).details[0].Unpack(bad)
            assert bad.field_violations[0].field == "token_ids"

    asyncio.run(run())


GENERATE = "/penstock.inference.v1.InferenceService/Generate"
LIST_MODELS = "/penstock.inference.v1.InferenceService/ListModels"
MIGRATE = "/penstock.control.v1.ControlService/MigrateRequest"
TEXT = inference_pb2.GenerateRequest.DESCRIPTOR.fields_by_name["text"].number


def field_of(number: int, value: bytes) -> bytes:
    """A field of bytes as it is on the wire."""
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize(
    "method, sent",
    [
        (GENERATE, field_of(TEXT, b"\xff\xfe\x80")),
        (GENERATE, field_of(1, b"\xff") + field_of(TEXT, b"hi")),
        (GENERATE, b"\xff" * 50),
        (LIST_MODELS, b"\xff" * 50),
        (MIGRATE, field_of(1, b"\xff\xfe")),
    ],
)
def test_bytes_that_are_no_request_are_refused_in_a_sentence_and_harm_nobody(method, sent):
    async def run():
        async with fleet(ONE_AND_TWO) as here, grpc.aio.insecure_channel(here.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                if method == GENERATE:
                    await channel.unary_stream(method)(sent, timeout=5).read()
                else:
                    await channel.unary_unary(method)(sent, timeout=5)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "not UTF-8" in caught.value.details()
            assert not here.router.sessions
            assert (await generate(here.address, request())).ids == output((1, 2, 3), 20)

    asyncio.run(run())


def test_a_port_in_use_is_told():
    async def run(port):
        server = RouterServer(RouterConfig(port=port), MODEL, None)
        with pytest.raises(ValueError, match=f"127.0.0.1:{port}"):
            await server.start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asyncio.run(run(taken.getsockname()[1]))


@pytest.mark.parametrize("wrong", [{"port": 70000}, {"max_sessions": 0}, {"host": ""}, {"stop_s": -1.0}])
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=f"router.{next(iter(wrong))}"):
        RouterConfig(**wrong)


# ---- the controller


class ToyController(router_pb2_grpc.RouterServiceServicer, control_pb2_grpc.ControlServiceServicer):
    """Tells instances and asks for moves; keeps what the router says."""

    def __init__(self):
        self.instances = []
        self.hellos, self.held, self.moved, self.lost, self.attained = [], [], [], [], []
        self.refused = []
        self.asks = asyncio.Queue()

    async def start(self, port=0):
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self.server)
        control_pb2_grpc.add_ControlServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        return f"127.0.0.1:{self.port}"

    async def stop(self):
        if self.server is not None:
            await self.server.stop(0)
        self.server = None

    async def Attach(self, request_iterator, context):
        listening = asyncio.ensure_future(self.listen(request_iterator))
        try:
            infos = [
                router_pb2.InstanceInfo(
                    name=one.name,
                    life=one.life,
                    address=one.at,
                    prefill_tokens=one.prefill_tokens,
                    decode_slots=one.decode_slots,
                )
                for one in self.instances
            ]
            yield router_pb2.AttachResponse(instances=router_pb2.Instances(instances=infos))
            while True:
                yield router_pb2.AttachResponse(ask_move=await self.asks.get())
        finally:
            listening.cancel()

    async def listen(self, requests):
        async for said in requests:
            match said.WhichOneof("message"):
                case "hello":
                    self.hellos.append(said.hello)
                case "sessions":
                    self.held.append(said.sessions)
                case "moved":
                    self.moved.append(said.moved)
                case "lost":
                    self.lost.append(said.lost)
                case "attainment":
                    self.attained.append(said.attainment)
                case "refused":
                    self.refused.append(said.refused)

    async def GetCluster(self, request, context):
        return control_pb2.GetClusterResponse(cluster="toy")

    async def MigrateRequest(self, request, context):
        metadata = (("grpc-status-details-bin", b"details"), ("other", "x"))
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such request", trailing_metadata=metadata)


@asynccontextmanager
async def controlled():
    """A router under a toy controller, with the instances of the default cluster."""
    controller = ToyController()
    for name, role in ONE_AND_TWO.items():
        controller.instances.append(ToyInstance(name, **role))
        await controller.instances[-1].start()
    server = RouterServer(
        RouterConfig(port=0, stop_s=0.3), MODEL, await controller.start(), FAST, name="router-7"
    )
    await server.start()
    try:
        await until(lambda: server.router.serving())
        yield controller, server
    finally:
        await server.stop()
        await controller.stop()
        for one in controller.instances:
            await one.kill()
        await swept()


def test_the_controller_hears_of_the_router_its_sessions_and_moves():
    async def run():
        async with controlled() as (controller, server):
            heard = Heard()
            asked = request(max_tokens=400, request_id="mine", priority="PRIORITY_HIGH")
            stream = asyncio.create_task(generate(server.address, asked, heard=heard))
            await until(
                lambda: any(session.owner in "bc" for held in controller.held for session in held.sessions)
            )
            await until(lambda: controller.held[-1].sessions[0].movable)
            (hello,) = controller.hellos
            assert (hello.name, hello.address, hello.pid) == ("router-7", server.address, os.getpid())
            held = controller.held[-1].sessions[0]
            assert (held.request_id, held.choice, held.prompt_tokens) == ("mine", 0, 3)
            assert (held.priority, held.remaining_tokens) == (2, 400 - held.emitted_tokens)
            live = router_pb2.MOVE_MODE_LIVE
            await controller.asks.put(
                router_pb2.AskMove(ask=11, session=held.session, mode=live, reason="a test")
            )
            await until(lambda: controller.moved)
            (moved,) = controller.moved
            assert moved.ask == 11 and moved.done and moved.source == held.owner
            await stream
            assert heard.ids == output((1, 2, 3), 400)
            await until(lambda: not controller.held[-1].sessions)
            await until(lambda: controller.attained[-1].outputs == 1)
            assert controller.attained[-1].outputs_in_time == controller.attained[-1].first_tokens == 1

    asyncio.run(run())


def test_the_router_serves_on_without_its_controller_and_finds_it_again():
    async def run():
        async with controlled() as (controller, server):
            await controller.stop()
            assert (await generate(server.address, request())).ids == output((1, 2, 3), 20)
            infos, controller.instances = controller.instances, []
            await controller.start(controller.port)  # a new one, which knows nobody yet
            await until(lambda: len(controller.hellos) == 2)
            controller.instances = infos
            assert (await generate(server.address, request())).ids == output((1, 2, 3), 20)

    asyncio.run(run())


def test_the_controller_hears_of_a_lost_instance():
    async def run():
        async with controlled() as (controller, server):
            await controller.instances[2].kill()
            await until(lambda: controller.lost)
            assert (controller.lost[0].name, controller.lost[0].condemned) == ("c", False)

    asyncio.run(run())


def test_the_controller_hears_of_a_refused_instance_and_when_it_is_used_again():
    async def run():
        async with controlled() as (controller, server):
            odd = controller.instances[2]
            odd.vocabulary += 1
            odd.to_router(server.name, Welcome(odd.me, "toy", 4096, odd.vocabulary, 1))
            await until(lambda: controller.refused and controller.refused[-1].instances)
            (told,) = controller.refused[-1].instances
            assert (told.name, told.life) == ("c", odd.life) and "vocabulary" in told.reason
            odd.vocabulary -= 1
            await until(lambda: not controller.refused[-1].instances)

    asyncio.run(run())


def test_control_calls_are_forwarded_with_their_errors():
    async def run():
        async with controlled() as (controller, server), grpc.aio.insecure_channel(server.address) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            assert (await stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5)).cluster == "toy"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.MigrateRequest(control_pb2.MigrateRequestRequest(), timeout=5)
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.NOT_FOUND,
                "no such request",
            )
            assert ("grpc-status-details-bin", b"details") in tuple(caught.value.trailing_metadata())
            await controller.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetCluster(control_pb2.GetClusterRequest(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "the controller is away" in caught.value.details()

    asyncio.run(run())


# ---- its end


def test_a_stop_lets_open_streams_end():
    async def run():
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, stop_s=10.0)) as here:
            heard = Heard()
            stream = asyncio.create_task(generate(here.address, request(max_tokens=100), heard=heard))
            await until(lambda: heard.ids)
            await here.server.stop()
            await stream
            assert heard.ids == output((1, 2, 3), 100)

    asyncio.run(run())


def test_a_stop_that_cannot_wait_tells_the_client_to_come_again():
    async def run():
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, stop_s=0.1)) as here:
            heard = Heard()
            stream = asyncio.create_task(generate(here.address, request(max_tokens=2000), heard=heard))
            await until(lambda: heard.ids)
            await here.server.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not from_rpc(caught.value, "").final

    asyncio.run(run())


def test_a_router_process_serves_without_torch_and_ends_on_sigterm():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--controller", "127.0.0.1:1", "--port", str(port), "--model", "toy"]
    arguments = [*options, "--context-tokens", "100", "--vocabulary", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.router.main", *arguments], stderr=subprocess.DEVNULL
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(20)
        with open(f"/proc/{process.pid}/maps") as maps:
            assert "libtorch" not in maps.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


NEEDED = ["--controller", "x:1", "--model", "m", "--context-tokens", "9", "--vocabulary", "9"]


def test_a_router_process_is_told_the_clusters_handover_values(monkeypatch):
    told = []

    async def serve(config, controller, model, handover, name):
        told.append(handover)

    def run(*options) -> None:
        monkeypatch.setattr(sys, "argv", ["penstock-router", *NEEDED, *options])
        main.main()

    monkeypatch.setattr(main, "serve", serve)
    run()
    run("--handover-heartbeat-s", "0.25", "--handover-stage-blocks", "32")
    run("--handover-stop-s", "0.7", "--stop-s", "9")
    changed = HandoverConfig(heartbeat_s=0.25, stage_blocks=32)
    assert told == [HandoverConfig(), changed, HandoverConfig(stop_s=0.7)]
    with pytest.raises(SystemExit) as ended:
        run("--handover-copy-share", "2")
    assert ended.value.code == 2


def test_a_router_process_takes_every_setting_of_a_router(monkeypatch):
    told = []

    async def serve(config, controller, model, handover, name):
        told.append(config)

    def run(*options) -> None:
        monkeypatch.setattr(sys, "argv", ["penstock-router", *NEEDED, *options])
        main.main()

    monkeypatch.setattr(main, "serve", serve)
    run()
    run("--dispatch", "freeness", "--ahead-s", "0.2", "--queue", "7", "--high", "0.5", "0.1")
    high = Slo(ttft_s=0.5, tpot_s=0.1)
    assert told == [RouterConfig(), RouterConfig(dispatch="freeness", ahead_s=0.2, queue=7, high=high)]
    for wrong in (["--dispatch", "random"], ["--queue", "0"], ["--normal", "-1", "0"]):
        with pytest.raises(SystemExit) as ended:
            run(*wrong)
        assert ended.value.code == 2


def test_a_wrong_option_of_the_process_is_one_line_and_exit_code_2():
    run = subprocess.run(
        [sys.executable, "-m", "penstock.router.main", *NEEDED, "--port", "99999"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 2 and "router.port" in run.stderr and "Traceback" not in run.stderr
