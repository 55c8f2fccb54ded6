"""A client gets every token exactly once and in order, whoever makes them and whatever becomes of those."""

import asyncio

import grpc
import grpc.aio
import pytest
from toy_fleet import ONE_AND_TWO, Heard, fleet, generate, request, until
from toy_instance import FAST, output

from penstock.client.errors import from_rpc
from penstock.handover.source import State
from penstock.proto import inference_pb2 as pb
from penstock.proto.inference_pb2_grpc import InferenceServiceStub
from penstock.router import server
from penstock.router.config import RouterConfig
from penstock.router.fleet import Mode, MoveWanted

LONG = 150


def test_a_request_is_prefilled_here_and_decoded_there():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            heard = await generate(here.address, request())
            assert heard.ids == output((1, 2, 3), 20)
            assert heard.makers[0] == "a" and heard.makers[-1] in "bc"
            assert heard.finished.reason == pb.FINISH_REASON_LENGTH
            usage = heard.finished.usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (3, 20)
            assert (usage.handovers, usage.recoveries) == (1, 0)

    asyncio.run(run())


def test_a_lone_instance_does_all_without_a_handover():
    async def run():
        async with fleet({"a": {"prefill_tokens": 512, "decode_slots": 8}}) as here:
            heard = await generate(here.address, request())
            assert heard.ids == output((1, 2, 3), 20) and heard.makers == ["a"]
            assert heard.finished.usage.handovers == 0

    asyncio.run(run())


def test_an_end_token_ends_the_stream():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            outputs = {seed: output((1, 2, 3), 200, seed, ignore_eos=False) for seed in range(50)}
            seed = next(seed for seed, ids in outputs.items() if 10 < len(ids) < 100)
            asked = request(max_tokens=200, sampling={"ignore_eos": False, "seed": seed})
            heard = await generate(here.address, asked)
            assert heard.ids == outputs[seed] and heard.finished.reason == pb.FINISH_REASON_STOP

    asyncio.run(run())


def test_concurrent_requests_do_not_mix():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            prompts = [tuple(range(1, 2 + 9 * n)) for n in range(12)]
            streams = [generate(here.address, request(prompt, 60)) for prompt in prompts]
            for prompt, heard in zip(prompts, await asyncio.gather(*streams), strict=True):
                assert heard.ids == output(prompt, 60)
            used = {start.destination.incarnation.instance for start in here.instances["a"].starts}
            assert used == {"b", "c"}

    asyncio.run(run())


def wanted(ask, session, destination="", mode=Mode.LIVE):
    return MoveWanted(ask, session, destination, mode, "a test")


@pytest.mark.parametrize("mode", [Mode.LIVE, Mode.BLOCKING])
def test_a_move_in_mid_stream_changes_the_maker_and_no_token(mode):
    async def run():
        async with fleet(ONE_AND_TWO) as here:

            async def move():
                (session,) = here.router.sessions
                here.router.want_move(wanted(7, session, mode=mode))

            heard = await generate(here.address, request(max_tokens=LONG), {30: move})
            assert heard.ids == output((1, 2, 3), LONG)
            assert len(heard.makers) == 3 and heard.makers[0] == "a"
            assert heard.finished.usage.handovers == 2
            (moved,) = here.router.moves
            assert moved.done and moved.ask == 7 and moved.source == heard.makers[1] and moved.seconds > 0

    asyncio.run(run())


def test_a_move_asked_for_during_a_handover_waits_for_it():
    async def run():
        async with fleet(ONE_AND_TWO) as here:

            async def move():
                (session,) = here.router.sessions
                for number in (1, 2, 3):
                    here.router.want_move(wanted(number, session))

            heard = await generate(here.address, request(max_tokens=LONG), {1: move})
            assert heard.ids == output((1, 2, 3), LONG)
            results = {moved.ask: moved for moved in here.router.moves}
            assert results[1].done and results[2].done and results[1].source != results[2].source
            assert not results[3].done and "another move" in results[3].reason

    asyncio.run(run())


def test_recompute_prefills_again_and_lands_where_it_was_wanted():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            target = []

            async def move():
                (session,) = here.router.sessions.values()
                target.append("c" if session.owner == "b" else "b")
                here.router.want_move(wanted(3, session.key, target[0], Mode.RECOMPUTE))

            heard = await generate(here.address, request(max_tokens=LONG), {30: move})
            assert heard.ids == output((1, 2, 3), LONG)
            assert heard.makers[-1] == target[0] and heard.finished.usage.recoveries == 1
            assert [moved.done for moved in here.router.moves] == [True]

    asyncio.run(run())


@pytest.mark.parametrize(
    "destination, reason",
    [("nobody", "no instance named nobody"), ("a", "no instance named a"), ("owner", "already")],
)
def test_a_move_that_cannot_be_is_answered_and_harms_nothing(destination, reason):
    async def run():
        async with fleet(ONE_AND_TWO) as here:

            async def move():
                (session,) = here.router.sessions.values()
                to = session.owner if destination == "owner" else destination
                here.router.want_move(wanted(3, session.key, to))

            heard = await generate(here.address, request(max_tokens=LONG), {30: move})
            assert heard.ids == output((1, 2, 3), LONG)
            (moved,) = here.router.moves
            assert not moved.done and reason in moved.reason

    asyncio.run(run())


def test_a_move_of_a_session_that_is_gone_is_answered():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            here.router.want_move(wanted(9, "no such session"))
            (moved,) = here.router.moves
            assert (moved.ask, moved.done, moved.reason) == (9, False, "the request ended")

    asyncio.run(run())


def test_a_destination_that_refuses_is_replaced_by_another():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            here.instances["b"].full = here.instances["c"].full = True

            async def room():
                await asyncio.sleep(0.5)
                here.instances["c"].full = False

            heard = await generate(here.address, request(max_tokens=30), {1: room})
            assert heard.ids == output((1, 2, 3), 30) and heard.makers == ["a", "c"]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["killed", "hung", "dropped"])
def test_the_loss_of_the_owner_leaves_no_gap_and_nothing_twice(how):
    async def run():
        async with fleet(ONE_AND_TWO) as here:

            async def lose():
                (session,) = here.router.sessions.values()
                owner = here.instances[session.owner]
                if how == "killed":
                    await owner.kill()
                elif how == "hung":
                    owner.frozen = True
                else:
                    del here.instances[session.owner]
                    here.told()
                    await owner.kill()

            heard = await generate(here.address, request(max_tokens=LONG), {30: lose})
            assert heard.ids == output((1, 2, 3), LONG)
            assert heard.finished.usage.recoveries >= 1
            assert any(not condemned for _, condemned in here.router.lost_instances)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["killed", "hung"])
@pytest.mark.parametrize("when", ["asking", "copying", "adopted"])
def test_a_prefill_that_is_lost_during_its_handover_leaves_no_gap_and_nothing_twice(when, how):
    def reached(source, others) -> bool:
        if when == "adopted":
            return any(one.sequences for one in others)
        leased = any(one.leases for one in others)
        asking = any(
            handover.state is State.RESERVING for seat in source.seats.values() for handover in seat.sources
        )
        return leased if when == "copying" else asking

    async def run():
        async with fleet({"a": {"prefill_tokens": 512}, "b": {"decode_slots": 8}}) as here:
            source, other = here.instances["a"], here.instances["b"]
            other.full = when == "asking"
            prompt = tuple(number % 900 + 10 for number in range(60 if when == "adopted" else 1900))
            stream = asyncio.create_task(generate(here.address, request(prompt, 40)))
            await until(lambda: reached(source, [other]))
            await here.add("c", prefill_tokens=512)
            if how == "killed":
                await source.kill()
            source.frozen, other.full = True, False
            heard = await stream
            assert heard.ids == output(prompt, 40) and heard.makers[-1] == "b"
            if when != "adopted":
                assert heard.finished.usage.recoveries >= 1
            await source.kill()  # as a controller kills what is lost, and says so
            other.bury(source.me)

    asyncio.run(run())


def test_a_prefill_keeps_its_sequences_while_the_decode_pool_is_full():
    """More than there is room for, for longer than any reservation waits: nothing is computed twice, or lost."""

    async def run():
        async with fleet(ONE_AND_TWO) as here:
            decoders = [here.instances["b"], here.instances["c"]]
            for one in decoders:
                one.full = True
            prompts = [tuple(range(1, 2 + 9 * n)) for n in range(8)]
            streams = [asyncio.create_task(generate(here.address, request(prompt, 30))) for prompt in prompts]
            asked = here.instances["a"]
            await until(lambda: len(asked.sequences) == len(prompts))
            await asyncio.sleep(3 * FAST.reserve_wait_s)
            assert not any(one.sequences for one in decoders) and len(asked.sequences) == len(prompts)
            for one in decoders:
                one.full = False
            for prompt, heard in zip(prompts, await asyncio.gather(*streams), strict=True):
                assert heard.ids == output(prompt, 30) and heard.finished.usage.recoveries == 0
            assert len(asked.starts) == len(prompts)

    asyncio.run(run())


def test_an_instance_that_hung_for_a_while_serves_again():
    async def run():
        async with fleet({"a": {"prefill_tokens": 512, "decode_slots": 8}}) as here:
            one = here.instances["a"]

            async def hang():
                one.frozen = True
                await asyncio.sleep(1.0)
                one.frozen = False

            heard = await generate(here.address, request(max_tokens=LONG), {20: hang})
            assert heard.ids == output((1, 2, 3), LONG)

    asyncio.run(run())


def test_a_lost_start_is_made_good_by_silence():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            here.instances["a"].lose_starts = 1
            heard = await generate(here.address, request())
            assert heard.ids == output((1, 2, 3), 20) and heard.finished.usage.recoveries == 1

    asyncio.run(run())


@pytest.mark.parametrize("after", [0, 1, 40])
def test_a_client_that_leaves_frees_everything(after):
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            async with grpc.aio.insecure_channel(here.address) as channel:
                call = InferenceServiceStub(channel).Generate(request(max_tokens=2000))
                heard = Heard()
                async for response in call:
                    heard.take(response)
                    if len(heard.ids) >= after:
                        break
                call.cancel()
            await here.settled()

    asyncio.run(run())


SMALL_WINDOW = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))


def test_a_client_that_stays_and_reads_nothing_holds_no_place():
    async def run():
        config = RouterConfig(port=0, session_queue=8, client_wait_s=0.5, stop_s=0.5)
        async with fleet(ONE_AND_TWO, config) as here:
            async with grpc.aio.insecure_channel(here.address, options=SMALL_WINDOW) as channel:
                call = InferenceServiceStub(channel).Generate(request(max_tokens=2000))
                await call.read()
                await here.settled()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    while await call.read():
                        pass
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(run())


@pytest.mark.parametrize("roles", [{}, ONE_AND_TWO], ids=["waiting for an instance", "decoding"])
def test_a_deadline_frees_everything(roles):
    async def run():
        async with fleet(roles) as here:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, request(max_tokens=2000), timeout=0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await here.settled()

    asyncio.run(run())


def test_a_resumed_request_goes_on_where_the_client_is():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            whole = output((1, 2, 3), 80, seed=5)
            first = Heard()
            task = asyncio.create_task(
                generate(
                    here.address, request(max_tokens=80, request_id="r", sampling={"seed": 5}), heard=first
                )
            )
            await until(lambda: len(first.ids) >= 10)
            received = list(first.ids)
            resume = pb.Resume(attempt=2, seed=5, received=[pb.ChoiceTokens(token_ids=received)])
            asked = request(max_tokens=80, request_id="r", resume=resume, sampling={"seed": None})
            second = await generate(here.address, asked, heard=Heard(first=len(received)))
            assert received + second.ids == whole
            assert second.started.attempt == 2 and second.finished.usage.completion_tokens == 80
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await task
            assert caught.value.code() is grpc.StatusCode.ABORTED

    asyncio.run(run())


def test_a_resume_with_all_tokens_ends_without_dispatch():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            ids = output((1, 2, 3), 20, seed=5)
            resume = pb.Resume(attempt=2, seed=5, received=[pb.ChoiceTokens(token_ids=ids)])
            heard = await generate(
                here.address, request(request_id="r", resume=resume, sampling={"seed": None})
            )
            assert heard.ids == [] and heard.finished.reason == pb.FINISH_REASON_LENGTH
            assert not here.instances["a"].starts

    asyncio.run(run())


def test_an_older_or_equal_attempt_is_refused():
    async def run():
        async with fleet(ONE_AND_TWO) as here:
            first = Heard()
            asked = request(max_tokens=2000, request_id="r")
            task = asyncio.create_task(generate(here.address, asked, heard=first))
            await until(lambda: first.ids)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, asked)
            assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
            task.cancel()
            await here.settled()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, asked)
            assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS

    asyncio.run(run())


def test_more_sessions_than_the_bound_are_refused():
    async def run():
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, max_sessions=1, stop_s=0.5)) as here:
            first = Heard()
            task = asyncio.create_task(generate(here.address, request(max_tokens=2000), heard=first))
            await until(lambda: first.ids)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, request())
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            task.cancel()
            await here.settled()
            assert (await generate(here.address, request())).ids == output((1, 2, 3), 20)

    asyncio.run(run())


def test_a_full_router_takes_a_resume_in_the_place_of_the_attempt_before():
    async def run():
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, max_sessions=1, stop_s=0.5)) as here:
            first = Heard()
            task = asyncio.create_task(
                generate(here.address, request(max_tokens=2000, request_id="r"), heard=first)
            )
            await until(lambda: first.ids)
            asked = request(max_tokens=40, request_id="r", resume=pb.Resume(attempt=2, seed=0))
            asked.sampling.ClearField("seed")
            assert (await generate(here.address, asked)).ids == output((1, 2, 3), 40)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await task
            assert caught.value.code() is grpc.StatusCode.ABORTED

    asyncio.run(run())


def test_a_resume_that_finds_no_place_leaves_the_attempt_before_alone():
    async def run():
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, max_sessions=2, stop_s=0.5)) as here:
            first, other = Heard(), Heard()
            tasks = [
                asyncio.create_task(
                    generate(here.address, request(max_tokens=400, request_id=name), heard=heard)
                )
                for name, heard in (("r", first), ("other", other))
            ]
            await until(lambda: first.ids and other.ids)
            resume = pb.Resume(attempt=2, seed=0)
            asked = request(max_tokens=40, request_id="r", resume=resume, sampling={"seed": None, "n": 2})
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, asked)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await asyncio.gather(*tasks)
            assert first.ids == output((1, 2, 3), 400)

    asyncio.run(run())


def test_calls_are_bounded_before_they_are_read(monkeypatch):
    monkeypatch.setattr(server, "OTHER_CALLS", 1)
    read = server.read_request

    async def run():
        gate = asyncio.Event()

        async def slow(*arguments):
            await gate.wait()
            return await read(*arguments)

        monkeypatch.setattr(server, "read_request", slow)
        async with fleet(ONE_AND_TWO, RouterConfig(port=0, max_sessions=1, stop_s=0.5)) as here:
            calls = [asyncio.create_task(generate(here.address, request(max_tokens=400))) for _ in range(12)]
            await until(lambda: sum(call.done() for call in calls) == 10)
            gate.set()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            errors = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
            assert {error.code() for error in errors} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert len(errors) == 11 and sum("sessions are open" in error.details() for error in errors) == 1

    asyncio.run(run())


def test_without_instances_a_request_fails_in_time():
    async def run():
        async with fleet({}, RouterConfig(port=0, dispatch_wait_s=0.2, stop_s=0.5)) as here:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(here.address, request())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no instance decodes" in caught.value.details() and from_rpc(caught.value, "").final

    asyncio.run(run())


def test_a_request_waits_for_an_instance_that_comes():
    async def run():
        async with fleet({"a": {"prefill_tokens": 512}}) as here:
            stream = asyncio.create_task(generate(here.address, request()))
            await asyncio.sleep(0.2)
            await here.add("b", decode_slots=8)
            assert (await stream).ids == output((1, 2, 3), 20)

    asyncio.run(run())


def test_a_message_of_an_unknown_session_is_answered_with_a_revoke():
    async def run():
        async with fleet({"a": {"prefill_tokens": 512, "decode_slots": 8}}) as here:
            first = Heard()
            task = asyncio.create_task(generate(here.address, request(max_tokens=2000), heard=first))
            await until(lambda: first.ids)
            here.router.sessions.clear()  # the router forgets, as one that was restarted would
            await until(lambda: here.instances["a"].idle)
            task.cancel()

    asyncio.run(run())
