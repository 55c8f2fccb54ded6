"""The client: typed events, errors with code and field, and streams that outlive their router."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import aclosing, suppress
from dataclasses import replace

import grpc
import pytest
from click.testing import CliRunner
from toy_fleet import MODEL, ThreadedFleet, until
from toy_instance import FAST, output

from penstock.cli.generate import CONSTRAINTS, _is_cut_short, _streamed, _tell, command
from penstock.cli.main import main, penstock
from penstock.client import (
    AsyncClient,
    Client,
    Completion,
    Delta,
    Finished,
    InvalidRequest,
    PenstockError,
    Started,
)
from penstock.client import address as addresses
from penstock.client.cluster import from_explanation
from penstock.client.errors import DETAILS_KEY, from_rpc
from penstock.client.events import Logprobs, Segment, Usage, from_response
from penstock.client.request import MOST_RETRIES, Attempts, Message, build
from penstock.cluster import processes, state
from penstock.policy.state import Priority
from penstock.proto import control_pb2, inference_pb2
from penstock.router.config import RouterConfig
from penstock.router.refusal import overloaded
from penstock.router.server import RouterServer

PROMPT = (1, 2, 3)
GREEDY = {"temperature": 0.0, "ignore_eos": True, "seed": 0}


def test_events_are_started_then_deltas_then_finished(cluster):
    with Client(cluster.fleet.address) as client:
        events = list(client.generate(PROMPT, max_tokens=20, request_id="mine", **GREEDY))
    started, *deltas, finished = events
    assert isinstance(started, Started) and started.request_id == "mine" and started.model == "toy"
    assert isinstance(finished, Finished) and finished.reason == "length"
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert [id for delta in deltas for id in delta.token_ids] == output(PROMPT, 20)


def test_a_completion_is_the_whole_answer_with_its_makers(cluster):
    with Client(cluster.fleet.address) as client:
        whole = client.complete(PROMPT, max_tokens=20, **GREEDY)
    assert list(whole.token_ids) == output(PROMPT, 20)
    assert whole.segments[0].instance == "a" and sum(part.tokens for part in whole.segments) == 20
    assert whole.usage.handovers == 1 and whole.usage.completion_tokens == 20


def test_a_drawn_seed_gives_the_same_tokens_again(cluster):
    with Client(cluster.fleet.address) as client:
        first = client.complete(PROMPT, max_tokens=20, ignore_eos=True)
        again = client.complete(PROMPT, max_tokens=20, ignore_eos=True, seed=first.seed)
        other = client.complete(PROMPT, max_tokens=20, ignore_eos=True)
    assert again.token_ids == first.token_ids and again.request_id != first.request_id
    assert other.seed != first.seed


def test_async_is_the_same(cluster):
    async def run():
        async with AsyncClient(cluster.fleet.address) as client:
            (model,) = await client.models()
            assert (model.name, model.vocabulary) == ("toy", MODEL.vocabulary)
            wholes = await asyncio.gather(
                *(client.complete((n,), max_tokens=15, **GREEDY) for n in range(1, 6))
            )
            assert [list(whole.token_ids) for whole in wholes] == [output((n,), 15) for n in range(1, 6)]
            with pytest.raises(InvalidRequest):
                await client.complete((), max_tokens=5)

    asyncio.run(run())


def test_leaving_a_stream_frees_the_request(cluster):
    with Client(cluster.fleet.address) as client:
        events = client.generate(PROMPT, max_tokens=2000, **GREEDY)
        next(events)
        events.close()
        cluster.run(cluster.fleet.settled())

    async def leave():
        async with AsyncClient(cluster.fleet.address) as client:
            async with aclosing(client.generate(PROMPT, max_tokens=2000, **GREEDY)) as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        break

    asyncio.run(leave())
    cluster.run(cluster.fleet.settled())


@pytest.mark.parametrize(
    "arguments, code, field",
    [
        ({"prompt": ()}, "INVALID_ARGUMENT", "token_ids"),
        ({"prompt": [MODEL.vocabulary]}, "INVALID_ARGUMENT", "token_ids"),
        ({"prompt": [1] * MODEL.context_tokens}, "INVALID_ARGUMENT", "token_ids"),
        ({"prompt": "text"}, "FAILED_PRECONDITION", "text"),
        ({"prompt": PROMPT, "max_tokens": 0}, "INVALID_ARGUMENT", "sampling.max_tokens"),
        ({"prompt": PROMPT, "max_tokens": -5}, "INVALID_ARGUMENT", "sampling.max_tokens"),
        ({"prompt": PROMPT, "temperature": -1.0}, "INVALID_ARGUMENT", "sampling.temperature"),
        ({"prompt": PROMPT, "temperature": float("nan")}, "INVALID_ARGUMENT", "sampling.temperature"),
        ({"prompt": PROMPT, "model": "other"}, "NOT_FOUND", "model"),
        ({"prompt": PROMPT, "n": 0}, "INVALID_ARGUMENT", "sampling.n"),
        ({"prompt": PROMPT, "cache_ttl_s": -1.0}, "INVALID_ARGUMENT", "cache_ttl"),
        ({"prompt": PROMPT, "tenant": "x" * 1000}, "INVALID_ARGUMENT", "tenant"),
        ({"prompt": PROMPT, "stop": "x"}, "FAILED_PRECONDITION", "sampling.stop"),
    ],
)
def test_a_wrong_argument_is_refused_with_code_and_field(cluster, arguments, code, field):
    with Client(cluster.fleet.address) as client:
        with pytest.raises(PenstockError) as caught:
            client.complete(**arguments)
        assert (caught.value.code.name, caught.value.field) == (code, field)
        assert isinstance(caught.value, ValueError) == (code == "INVALID_ARGUMENT")
        assert list(client.complete(PROMPT, max_tokens=5, **GREEDY).token_ids) == output(PROMPT, 5)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": PROMPT, "seed": -1}, "seed"),
        ({"prompt": PROMPT, "max_tokens": 2**70}, "max_tokens"),
        ({"prompt": PROMPT, "max_token": 5}, "max_token"),
        ({"prompt": PROMPT, "tenant": 5}, "tenant"),
        ({"prompt": PROMPT, "priority": "urgent"}, "priority"),
        ({"prompt": PROMPT, "cache_ttl_s": float("nan")}, "cache_ttl_s"),
        ({"prompt": "\udcff"}, "prompt is no text: .* not UTF-8"),
        ({"prompt": PROMPT, "request_id": "\udcff"}, "request_id is no text"),
        ({"prompt": PROMPT, "model": "\udcff"}, "model is no text"),
        ({}, "`prompt` or `messages`"),
        ({"prompt": PROMPT, "messages": [{"role": "user", "content": "hi"}]}, "`prompt` or `messages`"),
        ({"messages": [{"role": "user", "contents": "hi"}]}, "messages"),
        ({"messages": ["hi"]}, "messages must be a sequence of mappings with `role` and `content`"),
        ({"messages": "hi"}, "messages must be a sequence of mappings"),
        ({"messages": {"role": "user", "content": "hi"}}, "messages must be a sequence of mappings"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages must be .* each a str"),
        ({"prompt": 5}, "prompt must be a str or a sequence of token ids"),
        ({"prompt": b"hi"}, "prompt must be a str or a sequence of token ids"),
        ({"prompt": PROMPT, "choices": "yes"}, "choices must be a sequence of str"),
        ({"prompt": PROMPT, "choices": [1]}, "choices must be a sequence of str"),
        ({"prompt": PROMPT, "json_schema": ["a"]}, "json_schema must be a str or a mapping"),
        ({"prompt": PROMPT, "json_schema": {"enum": {1}}}, "json_schema: it is no JSON: .*set"),
    ],
)
def test_what_no_request_can_hold_is_a_value_error_before_any_call(arguments, says):
    with Client("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match=says) as caught:
            client.generate(**arguments)
        assert not isinstance(caught.value, PenstockError)


def test_a_chat_holds_its_messages_in_order():
    messages: list[Message] = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    built = build(None, messages, "r", None, {})
    assert [(one.role, one.content) for one in built.chat.messages] == [("user", "hi"), ("assistant", "ho")]


def test_a_deadline_is_an_error_with_its_code(cluster):
    with Client(cluster.fleet.address) as client:
        with pytest.raises(PenstockError) as caught:
            client.complete(PROMPT, max_tokens=2000, timeout_s=0.3, **GREEDY)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    cluster.run(cluster.fleet.settled())


def test_a_deadline_of_any_call_says_how_long_it_was_and_what_gives_it_longer():
    async def ask(address: str, **limit: float) -> None:
        async with AsyncClient(address) as client:
            await client.models(**limit)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(address) as client:
            calls = (
                lambda: client.models(timeout_s=0.1),
                lambda: list(client.watch(timeout_s=0.1)),
                lambda: client.complete(PROMPT, timeout_s=0.1),
                lambda: asyncio.run(ask(address, timeout_s=0.1)),
            )
            for call in calls:
                with pytest.raises(
                    PenstockError, match="not done within 0.1 s.* larger `timeout_s`"
                ) as caught:
                    call()
                assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_figures_of_a_decision_are_in_the_order_of_their_names():
    said = control_pb2.ExplainRequestResponse()
    names = [f"{letter}_s" for letter in "qwertyuiopasdfghjklzxcvbnm"]
    said.decisions.add(what="dispatched").figures.update(dict.fromkeys(names, 1.0))
    (decision,) = from_explanation(said).decisions
    assert list(decision.figures) == sorted(names)


def test_migrate_refuses_a_mode_that_is_none(cluster):
    with Client(cluster.fleet.address) as client:
        with pytest.raises(ValueError, match="live, blocking, recompute"):
            client.migrate("r", mode="fast")
        with pytest.raises(PenstockError) as caught:
            client.migrate("r")
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED  # this router has no controller


@pytest.mark.parametrize("graceful", [True, False])
def test_a_stream_outlives_its_router_without_a_gap_or_a_repeat(graceful):
    with ThreadedFleet(config=RouterConfig(port=0, stop_s=0.1), settles=False) as running:
        old = running.fleet.server

        async def replace():
            if graceful:
                await old.stop()
            else:
                await old._server.stop(0)
                await old.stop()
            port = int(old.address.rpartition(":")[2])
            running.fleet.server = RouterServer(RouterConfig(port=port, stop_s=0.1), MODEL, None, FAST)
            await running.fleet.server.start()
            running.fleet.told()

        ids, starts = [], 0
        with Client(old.address) as client:
            for event in client.generate(PROMPT, max_tokens=120, **GREEDY):
                match event:
                    case Started():
                        starts += 1
                    case Delta(first_index=first, token_ids=new):
                        assert first == len(ids)
                        ids.extend(new)
                        if 30 < len(ids) and running.fleet.server is old:
                            running.run(replace())
                    case Finished():
                        assert event.usage.completion_tokens == 120
        assert ids == output(PROMPT, 120) and starts == 1
        running.run(running.fleet.settled())
        running.stack.push_async_callback(running.fleet.server.stop)


def test_a_stream_goes_on_at_another_router_when_its_own_is_lost():
    config = RouterConfig(port=0, stop_s=0.1)
    with ThreadedFleet(config=config, settles=False) as running:
        old = running.fleet.server
        other = RouterServer(config, MODEL, None, FAST, "router-1")

        async def join():
            await other.start()
            other.set_instances([one.view for one in running.fleet.instances.values()])
            await until(lambda: all(view.alive for view in other.router.links.views()))

        async def lose():
            await old._server.stop(0)
            await old.stop()
            running.fleet.server = other

        running.run(join())
        ids = []
        with Client(f"{old.address},{other.address}") as client:
            for event in client.generate(PROMPT, max_tokens=120, **GREEDY):
                if isinstance(event, Delta):
                    assert event.first_index == len(ids)
                    ids.extend(event.token_ids)
                    if 30 < len(ids) and running.fleet.server is old:
                        running.run(lose())
        assert ids == output(PROMPT, 120)
        running.run(running.fleet.settled())
        running.stack.push_async_callback(other.stop)


def test_a_router_that_never_comes_back_is_an_error_in_time(monkeypatch):
    monkeypatch.setattr("penstock.client.request.MOST_RETRIES", 2)
    with ThreadedFleet(config=RouterConfig(port=0, stop_s=0.1), settles=False) as running:
        with Client(running.fleet.address) as client:
            events = client.generate(PROMPT, max_tokens=2000, **GREEDY)
            next(events)
            running.run(running.fleet.server.stop())
            with pytest.raises(PenstockError) as caught:
                list(events)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def _late_door(address: str, late_s: float) -> asyncio.Server:
    """Connections to it reach `address` after so long, as where a router has no processor for a while."""

    async def pipe(reader, writer) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def passed_on(reader, writer) -> None:
        await asyncio.sleep(late_s)
        with suppress(OSError):
            there, to_there = await asyncio.open_connection(*address.split(":"))
            await asyncio.gather(pipe(reader, to_there), pipe(there, writer))

    return await asyncio.start_server(passed_on, "127.0.0.1", 0)


def test_a_router_that_is_slow_to_greet_is_waited_for(cluster):
    door = cluster.run(_late_door(cluster.fleet.address, 0.5))
    try:
        with Client(f"127.0.0.1:{door.sockets[0].getsockname()[1]}") as client:
            whole = client.complete(PROMPT, max_tokens=5, **GREEDY)
        assert list(whole.token_ids) == output(PROMPT, 5)
    finally:
        cluster.loop.call_soon_threadsafe(door.close)


def lost() -> PenstockError:
    return PenstockError(grpc.StatusCode.UNAVAILABLE, "gone")


def test_attempts_that_bring_nothing_are_bounded_though_each_of_them_starts():
    attempts = Attempts(build(PROMPT, None, "r", None, {"n": 2, "max_tokens": 9}))
    started, finished = Started("r", "toy", 5, 1, 3, 9), Finished(0, "length", Usage(3, 1, 0, 0))
    attempts.take(started)
    attempts.take(finished)
    for again in range(MOST_RETRIES):
        assert (attempts.retry_after_s(lost()) > 0) is (again > 0), "the first is made at once"
        attempts.take(replace(started, attempt=again + 2))
        attempts.take(finished)  # told again, as the router of each attempt does
    with pytest.raises(PenstockError):
        attempts.retry_after_s(lost())


def test_attempts_that_bring_tokens_are_not_counted():
    attempts = Attempts(build(PROMPT, None, "r", None, {"max_tokens": 99}))
    attempts.take(Started("r", "toy", 5, 1, 3, 9))
    for index in range(2 * MOST_RETRIES):
        attempts.take(
            from_response(inference_pb2.GenerateResponse(delta={"first_index": index, "token_ids": [7]}))
        )
        attempts.retry_after_s(lost())
    assert attempts.request().resume.attempt == 2 * MOST_RETRIES + 1


def test_a_verdict_of_the_router_is_not_asked_for_again():
    """It lost its only instance in mid-stream and gave up: the client hears that once, and soon."""
    with ThreadedFleet(
        config=RouterConfig(port=0, dispatch_wait_s=0.2, stop_s=0.1), settles=False
    ) as running:
        router = running.fleet.server.router
        opened = []
        running.run(_watch(router, opened))
        with Client(running.fleet.address) as client:
            events = client.generate(PROMPT, max_tokens=2000, **GREEDY)
            next(events)
            running.run(_lose_all(running.fleet))
            with pytest.raises(PenstockError) as caught:
                list(events)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE and caught.value.final
        assert len(opened) == 1


async def _watch(router, opened: list) -> None:
    openly = router.open
    router.open = lambda calls: opened.append(calls) or openly(calls)


async def _lose_all(fleet) -> None:
    fleet.server.set_instances([])


# ---- where the cluster is


@pytest.fixture
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)


def serve(address: str, pid: int | None = None, foreground: bool = True, cluster_id: str = "a") -> None:
    """The record that a `penstock up` leaves."""
    pid = os.getpid() if pid is None else pid
    fields = {"name": "penstock", "pid_started_at": processes.started_at(pid), "temp_dir": ""}
    state.write(
        state.ClusterRecord(cluster_id=cluster_id, pid=pid, address=address, foreground=foreground, **fields)
    )


def test_the_address_is_the_argument_then_the_variable_then_the_last_up(no_cluster, monkeypatch):
    serve("127.0.0.1:7")
    assert addresses.resolve() == "127.0.0.1:7"
    monkeypatch.setenv("PENSTOCK_ADDRESS", "127.0.0.1:8")
    assert addresses.resolve() == "127.0.0.1:8"
    assert addresses.resolve("127.0.0.1:9") == "127.0.0.1:9"


def test_several_routers_are_one_target_and_each_needs_a_port():
    assert addresses.resolve("127.0.0.1:7,localhost:8") == "127.0.0.1:7,localhost:8"
    assert addresses.target("127.0.0.1:7,localhost:8") == "ipv4:127.0.0.1:7,127.0.0.1:8"
    assert addresses.target("cluster.example:7") == "cluster.example:7"
    for wrong in ("127.0.0.1:7,", "127.0.0.1:7,localhost", "127.0.0.1:7 127.0.0.1:8"):
        with pytest.raises(ValueError, match="host:port"):
            addresses.resolve(wrong)


def test_without_a_cluster_the_way_to_one_is_told(no_cluster):
    with pytest.raises(ValueError, match="penstock up"):
        addresses.resolve()


def test_the_record_of_a_dead_up_is_no_cluster(no_cluster):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    serve("127.0.0.1:7", gone.pid)
    with pytest.raises(ValueError, match="No cluster is running"):
        addresses.resolve()


@pytest.mark.parametrize("fields", [{"address": ""}, {"address": "127.0.0.1:7", "foreground": False}])
def test_a_cluster_that_starts_and_one_of_a_program_are_not_found(no_cluster, fields):
    serve(**fields)
    with pytest.raises(ValueError, match="No cluster is running"):
        addresses.resolve()


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"address": 1, "pid": "x"}', "[]", "7"])
def test_a_broken_record_is_no_cluster(no_cluster, text):
    addresses.folder().mkdir(parents=True)
    (addresses.folder() / "a.json").write_text(text)
    with pytest.raises(ValueError, match="No cluster is running"):
        addresses.resolve()


def test_when_the_latest_cluster_ends_the_one_before_is_found_again(no_cluster):
    for port in (7, 8):
        serve(f"127.0.0.1:{port}", cluster_id=str(port))
    serve("", cluster_id="9")
    assert [one.address for one in addresses.serving()] == ["127.0.0.1:7", "127.0.0.1:8"]
    assert addresses.resolve() == state.running()[-1].address == "127.0.0.1:8"
    state.remove("8")
    assert addresses.resolve() == state.running()[-1].address == "127.0.0.1:7"


def test_of_several_clusters_a_command_says_which(no_cluster, cluster):
    alone = generate("--token-ids", "1", "--max-tokens", 1, "--address", cluster.fleet.address)
    serve("127.0.0.1:7", cluster_id="7")
    serve(cluster.fleet.address, cluster_id="8")
    said = generate("--token-ids", "1", "--max-tokens", 1)
    assert said.exit_code == 0 and "clusters run here" not in alone.stderr
    assert (
        f"2 clusters run here: this is the latest, {cluster.fleet.address}; --address: 127.0.0.1:7"
        in said.stderr
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["drain", "decode-0"],
        ["flip", "decode-0", "--to", "prefill"],
        ["scale", "decode", "2"],
        ["restart", "--rolling"],
        ["migrate", "r"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_of_several_clusters_none_is_changed_that_is_not_named(no_cluster, arguments):
    serve("127.0.0.1:7", cluster_id="7")
    serve("127.0.0.1:8", cluster_id="8")
    said = CliRunner().invoke(penstock, arguments)
    assert said.exit_code == 2
    assert "2 clusters run here; give --address, one of: 127.0.0.1:7, 127.0.0.1:8." in said.stderr
    named = CliRunner().invoke(penstock, [*arguments, "--address", "127.0.0.1:1"])
    assert "clusters run here" not in named.stderr


@pytest.mark.parametrize("wrong", ["nonsense", "host:", ":5", "host:99999", "host:http"])
def test_what_is_no_address_is_refused(wrong):
    with pytest.raises(ValueError, match="no address"):
        addresses.resolve(wrong)


# ---- penstock generate


def generate(*arguments, **options):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], **options)


def test_the_command_reports_tokens_and_makers_as_json(cluster):
    asked = ["--token-ids", "1,2,3", "--max-tokens", 20, "--temperature", 0, "--seed", 0, "--ignore-eos"]
    result = generate(*asked, "--json", "--address", cluster.fleet.address)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["token_ids"] == output(PROMPT, 20)
    assert said["usage"]["completion_tokens"] == 20 and said["segments"][0]["instance"] == "a"


def test_the_command_tells_ids_where_there_is_no_text(cluster):
    asked = ["--token-ids", "1,2,3", "--max-tokens", 4, "--seed", 0, "--ignore-eos"]
    result = generate(*asked, "--address", cluster.fleet.address)
    assert result.stdout == " ".join(map(str, output(PROMPT, 4))) + "\n"
    first, last = result.stderr.splitlines()
    assert "4 out (a 1" in last and first in last and first.startswith("request ")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["hi", "--token-ids", "1"], "not both"),
        (["--token-ids", "1,x"], "numbers"),
        (["hi", "--seed", "-1"], "seed"),
        (["--token-ids", "1", "--max-tokens", "0"], "at least 1"),
        (["hi", "--address", "nowhere"], "no address"),
        (["--chat", "--token-ids", "1"], "laid out already"),
        (["--chat", "hi"], "has no tokenizer"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(cluster, arguments, says):
    given = arguments if "--address" in arguments else [*arguments, "--address", cluster.fleet.address]
    result = generate(*given)
    assert result.exit_code != 0 and says in result.output + str(result.exception)


def test_a_deadline_is_told_in_plain_words(cluster):
    asked = ["--token-ids", "1", "--max-tokens", 2000, "--ignore-eos", "--timeout", 0.2]
    result = generate(*asked, "--address", cluster.fleet.address)
    assert result.exit_code != 0 and "not complete within 0.2 s; --timeout" in result.output


def test_with_json_a_refusal_is_one_object_with_code_and_field(cluster, monkeypatch, capsys):
    asked = ["--token-ids", "1", "--max-tokens", "0", "--json", "--address", cluster.fleet.address]
    monkeypatch.setattr(sys, "argv", ["penstock", "generate", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    told = json.loads(capsys.readouterr().out)["error"]
    assert ended.value.code == 2 and "at least 1" in told["message"]
    assert (told["code"], told["field"]) == ("INVALID_ARGUMENT", "sampling.max_tokens")


def test_more_tokens_than_the_context_leaves_are_said_not_to_come(cluster):
    most = MODEL.context_tokens - len(PROMPT)
    asked = ["--token-ids", "1,2,3", "--temperature", 0, "--json", "--address", cluster.fleet.address]
    clipped = generate(*asked, "--max-tokens", most + 1)
    assert json.loads(clipped.stdout)["usage"]["completion_tokens"] <= most
    assert (
        clipped.stderr
        == f"--max-tokens is {most + 1}, and the context has room for {most}: no more will come\n"
    )
    assert generate(*asked, "--max-tokens", most).stderr == ""


def test_an_error_amid_the_text_stands_on_a_line_of_its_own(capsys):
    def events():
        yield Delta(0, 0, (1,), "half a", "a")
        raise PenstockError(grpc.StatusCode.UNAVAILABLE, "gone")

    with pytest.raises(PenstockError):
        list(_streamed(events()))
    assert capsys.readouterr().out == "half a\n"


def test_log_probabilities_are_told_a_line_for_each_token(capsys):
    logprobs = (Logprobs(-0.5, ((7, -0.5), (9, -1.25))), Logprobs(-2.0, ()))
    usage = Usage(1, 2, 0, 0)
    _tell(Completion("r", "m", 1, (7, 8), "ab", "length", usage, (), logprobs=logprobs))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split() for line in lines] == [["7", "-0.500", "7:-0.500", "9:-1.250"], ["8", "-2.000"]]


def test_what_it_took_is_one_line_however_long(capsys):
    segments = tuple(Segment(f"decode-{index}", index, 1) for index in range(40))
    _tell(Completion("r", "m", 1, (7,), "ab", "length", Usage(1, 40, 0, 0), segments))
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "asked, reason, text, cut",
    [
        ({"regex": "a+b"}, "length", "aa", True),
        ({"regex": "a+b"}, "stop", "aab", False),
        ({"choices": ("yes", "no")}, "length", "ye", True),
        ({"choices": ("yes", "no")}, "length", "yes", False),
        ({}, "length", "aa", False),
    ],
)
def test_an_output_that_ends_before_its_constraint_is_met_is_cut_short(asked, reason, text, cut):
    whole = Completion("r", "m", 1, (7,), text, reason, Usage(1, 1, 0, 0), ())
    assert _is_cut_short(whole, dict.fromkeys(CONSTRAINTS) | asked) == cut


def test_log_probabilities_of_the_prompt_are_said_to_need_json(cluster):
    asked = ["--token-ids", "1,2,3", "--max-tokens", 2, "--prompt-logprobs", 1]
    says = "--prompt-logprobs is shown with --json only"
    assert says in generate(*asked, "--address", cluster.fleet.address).stderr
    assert says not in generate(*asked, "--json", "--address", cluster.fleet.address).stderr


def test_a_refusal_says_when_to_ask_again():
    details = overloaded("The cluster is busy.", 1.5).details()

    class Call(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.RESOURCE_EXHAUSTED)
        details = staticmethod(lambda: "The cluster is busy.")
        trailing_metadata = staticmethod(lambda: ((DETAILS_KEY, details),))

    error = from_rpc(Call(), "here")
    assert (error.code, error.retry_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5)


def test_standard_input_that_is_no_utf8_is_refused(cluster):
    result = generate("--address", cluster.fleet.address, input=b"\xff\xfe")
    assert result.exit_code != 0 and "UTF-8" in result.output


def test_every_option_of_the_command_reaches_the_instance(cluster):
    shaping = {"top_p": 0.9, "top_k": 40, "min_p": 0.05, "presence_penalty": -0.5, "frequency_penalty": 0.25}
    shaping |= {"repetition_penalty": 1.1, "min_tokens": 2, "logprobs": 3, "prompt_logprobs": 1}
    options = [word for name, value in shaping.items() for word in (f"--{name.replace('_', '-')}", value)]
    whose = ["--tenant", "us", "--application", "chat", "--cache-ttl", 1.5, "--priority", "high"]
    more = ["--logit-bias", "9=-1.5", "--logit-bias", "4=2", "--stop-token-ids", "8,6", "--echo"]
    asked = ["--token-ids", "1,2,3", "--max-tokens", 4, "--ignore-eos", *options, *more, *whose]
    result = generate(*asked, "--json", "--address", cluster.fleet.address)
    assert result.exit_code == 0, result.output
    context = cluster.fleet.instances["a"].starts[-1].context
    assert (context.salt, context.application, context.cache_ttl_s) == ("us", "chat", 1.5)
    assert context.priority == Priority.HIGH
    params = context.params
    assert {name: getattr(params, name) for name in shaping} == shaping
    assert params.logit_bias == ((4, 2.0), (9, -1.5)) and params.stop_token_ids == (6, 8)
    assert json.loads(result.stdout)["prompt"]["token_ids"] == [1, 2, 3]


def test_the_command_reports_each_choice(cluster):
    asked = ["--token-ids", "1,2,3", "--max-tokens", 20, "--seed", 0, "--ignore-eos", "--n", 2]
    said = json.loads(generate(*asked, "--json", "--address", cluster.fleet.address).stdout)
    for choice, whole in enumerate(said["choices"]):
        assert (whole["choice"], whole["token_ids"]) == (choice, output(PROMPT, 20, choice=choice))
    assert "--- choice 1" in generate(*asked, "--address", cluster.fleet.address).stdout


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--logit-bias", "5"], "ID=BIAS"),
        (["--stop-token-ids", "1,x"], "numbers"),
        (["--regex", "a", "--grammar", "b"], "already"),
        (["--top-p", "1.5"], "above 0 and at most 1"),
        (["--json-schema", "@nowhere.json"], "nowhere.json"),
    ],
)
def test_a_wrong_parameter_on_the_command_line_is_told(cluster, arguments, says):
    result = generate("--token-ids", "1", *arguments, "--address", cluster.fleet.address)
    assert result.exit_code != 0 and says in result.output + str(result.exception)


# ---- several choices


def test_all_choices_are_whole_and_in_order(cluster):
    with Client(cluster.fleet.address) as client:
        wholes = client.complete_all(PROMPT, max_tokens=20, n=3, **GREEDY)
        assert [whole.choice for whole in wholes] == [0, 1, 2]
        assert [list(whole.token_ids) for whole in wholes] == [output(PROMPT, 20, choice=n) for n in range(3)]
        with pytest.raises(ValueError, match="3 choices"):
            client.complete(PROMPT, max_tokens=2, n=3, **GREEDY)


def test_choices_outlive_their_router_and_end_once_each():
    def event(**fields):
        return from_response(inference_pb2.GenerateResponse(**fields))

    def finished(choice):
        return event(
            finished=inference_pb2.Finished(choice=choice, reason=inference_pb2.FINISH_REASON_LENGTH)
        )

    def delta(choice, first, *ids):
        return event(delta=inference_pb2.Delta(choice=choice, first_index=first, token_ids=ids))

    attempts = Attempts(build(PROMPT, None, "r", None, {"n": 2, "max_tokens": 3}))
    started = event(started=inference_pb2.Started(request_id="r", seed=5, attempt=1))
    first = [started, delta(0, 0, 1, 2, 3), finished(0), delta(1, 0, 7)]
    assert [attempts.take(one) for one in first] == first
    attempts.retry_after_s(PenstockError(grpc.StatusCode.UNAVAILABLE, "gone"))
    resume = attempts.request().resume
    assert (resume.attempt, resume.seed) == (2, 5)
    assert {entry.choice: list(entry.token_ids) for entry in resume.received} == {0: [1, 2, 3], 1: [7]}
    assert [attempts.take(one) for one in (started, finished(0), delta(1, 1, 8, 9), finished(1))] == [
        None,
        None,
        delta(1, 1, 8, 9),
        finished(1),
    ]


@pytest.mark.parametrize(
    "constraint, told",
    [
        ({"json_schema": {"type": "integer"}}, {"json_schema": '{"type": "integer"}'}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choices": ["a", "b"]}, {"choices": {"values": ["a", "b"]}}),
        ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
    ],
)
def test_a_constraint_is_a_field_like_any_other(constraint, told):
    request = build(PROMPT, None, None, None, constraint)
    assert request.sampling.structured == inference_pb2.StructuredOutput(**told)
