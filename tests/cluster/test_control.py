"""ControlService and RouterService: what an operator may ask, and what becomes of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest
from waiting import until

from penstock.cluster import control as control_module
from penstock.cluster import routers
from penstock.cluster.config import ClusterConfig
from penstock.cluster.control import Control
from penstock.cluster.lifecycle import Lifecycle
from penstock.cluster.overview import Overview
from penstock.cluster.registry import Running, State, specs
from penstock.cluster.routers import Routers
from penstock.cluster.supervisor import Supervisor
from penstock.handover.config import HandoverConfig
from penstock.handover.values import Incarnation
from penstock.policy.journal import Decision, Journal
from penstock.policy.state import LoadView
from penstock.proto import control_pb2 as control
from penstock.proto import router_pb2 as pb
from penstock.proto.control_pb2_grpc import ControlServiceStub, add_ControlServiceServicer_to_server
from penstock.proto.router_pb2_grpc import RouterServiceStub, add_RouterServiceServicer_to_server

HANDOVER = HandoverConfig(heartbeat_s=0.02)
GROWN = Decision(7.0, "controller", "decode", "grow", {"decode_free_steps": 9.0})
MOVE_S = 2.0
LOADS = {
    "prefill": LoadView(prefill_tokens=512, block_size=16, total_blocks=64, free_blocks=64),
    "decode": LoadView(decode_slots=8, block_size=16, total_blocks=64, free_blocks=64),
}


class FakeRouter:
    """Attaches, lists one session, and answers moves with `answer`, or not at all where that is None."""

    def __init__(self, answer: pb.Moved | None):
        self.answer = answer
        self.asked: list[pb.AskMove] = []
        self.remembers: list[control.Decision] | None = []
        """Of any request; None: it does not say."""
        self.listed: list[pb.Instances] = []
        self._out: asyncio.Queue[pb.AttachRequest | None] = asyncio.Queue()

    def say(self, request: pb.AttachRequest | None) -> None:
        """None: go away."""
        self._out.put_nowait(request)

    async def attached(self, stub: RouterServiceStub) -> None:
        async for response in stub.Attach(self._requests()):
            if response.HasField("instances"):
                self.listed.append(response.instances)
            elif response.HasField("recall"):
                if self.remembers is not None:
                    recalled = pb.Recalled(ask=response.recall.ask, decisions=self.remembers)
                    self.say(pb.AttachRequest(recalled=recalled))
            else:
                self.asked.append(response.ask_move)
                if self.answer is not None:
                    moved = pb.Moved()
                    moved.CopyFrom(self.answer)
                    moved.ask = response.ask_move.ask
                    self.say(pb.AttachRequest(moved=moved))

    async def _requests(self) -> AsyncIterator[pb.AttachRequest]:
        yield pb.AttachRequest(hello=pb.RouterHello(name="router-0", address="127.0.0.1:1", pid=7))
        held = pb.HeldSession(
            session="s#0", request_id="r", owner="decode-0", prompt_tokens=3, emitted_tokens=5
        )
        yield pb.AttachRequest(sessions=pb.SessionsHeld(sessions=[held]))
        while (request := await self._out.get()) is not None:
            yield request


class Party:
    """A controller without Ray, all of whose instances serve, and a router that is attached to it."""

    def __init__(self, answer: pb.Moved | None):
        self.lost: list[tuple[Incarnation, bool]] = []
        self.silent: list[str] = []
        self.routers = Routers(
            "c",
            "m",
            lambda who, condemned: self.lost.append((who, condemned)),
            lambda hello: self.silent.append(hello.name),
        )
        self.supervisor = Supervisor(
            None,  # type: ignore[arg-type]
            specs(ClusterConfig()),
            HANDOVER,
            "controller:c",
            self.tell,
            self.routers.refusal,
        )
        self.router = FakeRouter(answer)
        self.supervisor.load = lambda name: LOADS[name.split("-")[0]]  # type: ignore[method-assign]
        for name in self.supervisor.registry.records:
            self.serve(name, 1)

    def serve(self, name: str, life: int) -> None:
        registry = self.supervisor.registry.starting(name, life)
        self.supervisor.registry = registry.serving(
            Incarnation(name, life), Running("127.0.0.1:2", 9, "here")
        )
        self.tell()

    def tell(self) -> None:
        self.routers.tell(self.supervisor.registry.usable())

    def lose(self, name: str) -> None:
        self.supervisor.registry = self.supervisor.registry.lost(Incarnation(name, 1), "its process died")
        self.tell()


def play(
    scenario: Callable[[Party, ControlServiceStub], Awaitable[None]], answer: pb.Moved | None = None
) -> None:
    async def played() -> None:
        party = Party(answer)
        server = grpc.aio.server()
        overview = Overview("c", "m", party.supervisor, party.routers, [GROWN], lambda record: 1 << 20)
        lifecycle = Lifecycle(party.supervisor, ClusterConfig(), HANDOVER)
        journal = Journal("controller", lambda: 7.0)
        control_service = Control(
            overview, lifecycle, party.supervisor, party.routers, HANDOVER, MOVE_S, journal
        )
        add_ControlServiceServicer_to_server(control_service, server)
        add_RouterServiceServicer_to_server(party.routers, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            router = asyncio.create_task(party.router.attached(RouterServiceStub(channel)))
            try:
                async with asyncio.timeout(60):
                    await until(lambda: bool(party.routers.attached and party.routers.holding("r")))
                    await scenario(party, ControlServiceStub(channel))
            finally:
                router.cancel()
                await asyncio.gather(router, return_exceptions=True)
                await server.stop(0)

    asyncio.run(played())


def asked(**fields) -> control.MigrateRequestRequest:
    return control.MigrateRequestRequest(**{"request_id": "r", **fields})


MOVED = pb.Moved(done=True, seconds=0.25, source="decode-0")


def test_the_cluster_is_told_whole():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        said = await stub.GetCluster(control.GetClusterRequest(sessions=True))
        assert [instance.name for instance in said.instances] == ["prefill-0", "decode-0", "decode-1"]
        assert {instance.state for instance in said.instances} == {control.INSTANCE_STATE_SERVING}
        assert said.instances[0].role == control.Role(prefill_tokens=512, decode_slots=0)
        assert (said.routers[0].address, said.routers[0].sessions) == ("127.0.0.1:1", 1)
        assert (said.sessions[0].request_id, said.sessions[0].owner) == ("r", "decode-0")
        assert not (await stub.GetCluster(control.GetClusterRequest())).sessions

    play(scenario)


def test_an_instance_that_a_router_refuses_does_not_serve_and_the_reason_is_told():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        (router,) = party.routers.attached
        refused = [
            pb.RefusedInstance(name="decode-0", life=1, reason="its weights"),
            pb.RefusedInstance(name="decode-1", life=7),
        ]
        party.routers._take(router, pb.AttachRequest(refused=pb.RefusedInstances(instances=refused)))
        said = {one.name: one for one in (await stub.GetCluster(control.GetClusterRequest())).instances}
        assert said["decode-0"].state == control.INSTANCE_STATE_REFUSED
        assert said["decode-0"].reason == f"{router.hello.name} does not use it: its weights"
        assert said["decode-1"].state == control.INSTANCE_STATE_SERVING, "it was another life"
        with pytest.raises(grpc.aio.AioRpcError, match="decode-0 takes no request: .* its weights"):
            await stub.MigrateRequest(asked(destination="decode-0"))
        party.routers._take(router, pb.AttachRequest(refused=pb.RefusedInstances()))
        (said,) = (
            one
            for one in (await stub.GetCluster(control.GetClusterRequest())).instances
            if one.name == "decode-0"
        )
        assert (said.state, said.reason) == (control.INSTANCE_STATE_SERVING, "")

    play(scenario)


def test_a_move_without_a_destination_goes_to_the_other_instance_that_decodes():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        (move,) = (await stub.MigrateRequest(asked())).moves
        assert (move.source, move.destination, move.done, move.seconds) == (
            "decode-0",
            "decode-1",
            True,
            0.25,
        )
        assert (party.router.asked[0].session, party.router.asked[0].mode) == ("s#0", pb.MOVE_MODE_LIVE)

    play(scenario, MOVED)


def test_choices_that_move_together_do_not_all_go_to_one_instance():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        held = [
            pb.HeldSession(
                session=f"s#{choice}", request_id="r", choice=choice, owner="prefill-0", prompt_tokens=100
            )
            for choice in range(4)
        ]
        party.router.say(pb.AttachRequest(sessions=pb.SessionsHeld(sessions=held)))
        await until(lambda: len(party.routers.holding("r")) == 4)
        moves = (await stub.MigrateRequest(asked())).moves
        assert sorted(move.destination for move in moves) == ["decode-0", "decode-0", "decode-1", "decode-1"]

    play(scenario, MOVED)


def test_a_move_that_is_done_is_known_before_the_routers_next_list():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        party.serve("decode-1", 2)
        for _ in range(3):
            await stub.MigrateRequest(asked())
        assert [ask.destination for ask in party.router.asked] == ["decode-1", "decode-0", "decode-1"]
        ((_, held),) = party.routers.holding("r")
        assert (held.owner, held.owner_life) == ("decode-1", 2)

    play(scenario, MOVED)


@pytest.mark.parametrize("name", ["LIVE", "BLOCKING", "RECOMPUTE"])
def test_the_router_is_asked_for_the_mode_that_the_operator_named(name):
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        await stub.MigrateRequest(asked(destination="decode-1", mode=f"MOVE_MODE_{name}"))
        assert pb.MoveMode.Name(party.router.asked[0].mode) == f"MOVE_MODE_{name}"

    play(scenario, MOVED)


def test_a_move_that_is_refused_says_why():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        (move,) = (await stub.MigrateRequest(asked(destination="decode-1"))).moves
        assert (move.done, move.reason) == (False, "no room")

    play(scenario, pb.Moved(reason="no room"))


def test_a_router_that_never_answers_costs_the_move_and_no_more():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        (move,) = (await stub.MigrateRequest(asked())).moves
        assert not move.done and "did not answer" in move.reason
        assert (await stub.GetCluster(control.GetClusterRequest())).routers

    play(scenario)


def test_a_router_that_goes_away_ends_its_moves():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        call = asyncio.ensure_future(stub.MigrateRequest(asked()))
        await until(lambda: bool(party.router.asked))
        party.router.say(None)
        (move,) = (await call).moves
        assert (move.done, move.reason) == (False, "its router went away")
        assert not party.routers.attached

    play(scenario)


def test_a_router_that_says_nothing_any_more_hangs_and_is_attached_no_more(monkeypatch):
    monkeypatch.setattr(routers, "SILENT_S", 0.3)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        call = asyncio.ensure_future(stub.MigrateRequest(asked()))
        await until(lambda: bool(party.router.asked))
        (move,) = (await call).moves
        assert (move.done, move.reason) == (False, "its router went away")
        assert not (await stub.GetCluster(control.GetClusterRequest())).routers
        assert party.silent == ["router-0"]

    play(scenario)


def test_a_controller_that_stood_still_takes_no_router_for_hung(monkeypatch):
    monkeypatch.setattr(routers, "SILENT_S", 0.3)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        time.sleep(1.0)  # noqa: ASYNC251  the whole process stands still
        for _ in range(3):
            party.router.say(pb.AttachRequest())
            await asyncio.sleep(0.1)
        assert party.silent == [] and party.routers.holding("r")

    play(scenario)


def test_a_router_that_beats_stays_attached(monkeypatch):
    monkeypatch.setattr(routers, "SILENT_S", 0.3)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        for _ in range(10):
            party.router.say(pb.AttachRequest())
            await asyncio.sleep(0.1)
        assert party.routers.holding("r") and party.silent == []

    play(scenario)


def test_moves_under_way_are_bounded(monkeypatch):
    monkeypatch.setattr(routers, "MOST_ASKS", 2)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        calls = [asyncio.ensure_future(stub.MigrateRequest(asked())) for _ in range(5)]
        done, waiting = await asyncio.wait(calls, timeout=MOVE_S / 2)
        assert len(waiting) == 2
        assert {call.result().moves[0].reason for call in done} == {"2 moves are under way already"}
        for call in waiting:
            await call

    play(scenario)


@pytest.mark.parametrize(
    "fields, code, text",
    [
        ({"request_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "request_id must not be empty"),
        ({"request_id": "x"}, grpc.StatusCode.NOT_FOUND, "no request x runs here"),
        ({"choice": 4}, grpc.StatusCode.NOT_FOUND, "no choice 4 of request r runs here"),
        (
            {"destination": "decode-9"},
            grpc.StatusCode.NOT_FOUND,
            "no instance decode-9; there are decode-0, decode-1, prefill-0",
        ),
        ({"destination": "prefill-0"}, grpc.StatusCode.FAILED_PRECONDITION, "prefill-0 does not decode"),
        ({"destination": "decode-0"}, grpc.StatusCode.FAILED_PRECONDITION, "r runs on decode-0 already"),
        ({"mode": 77}, grpc.StatusCode.INVALID_ARGUMENT, "no move mode 77"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_with_its_code(fields, code, text):
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.MigrateRequest(asked(**fields))
        assert (raised.value.code(), raised.value.details()) == (code, text)
        assert not party.router.asked

    play(scenario, MOVED)


def test_an_instance_that_is_lost_takes_no_request():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        party.lose("decode-1")
        for destination, text in (
            ("decode-1", "decode-1 takes no request: it is lost (its process died)"),
            ("", "no other instance decodes"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.MigrateRequest(asked(destination=destination))
            assert (raised.value.code(), raised.value.details()) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                text,
            )

    play(scenario, MOVED)


def test_a_watched_cluster_is_told_again_only_when_it_has_changed(monkeypatch):
    monkeypatch.setattr(control_module, "WATCH_S", 0.02)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        watched = aiter(stub.WatchCluster(control.WatchClusterRequest(sessions=True)))
        first = (await anext(watched)).cluster
        assert len(first.instances) == 3 and len(first.sessions) == 1
        second = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0.2)
        assert not second.done()
        party.lose("decode-1")
        states = {one.name: one.state for one in (await second).cluster.instances}
        assert states["decode-1"] == control.INSTANCE_STATE_LOST

    play(scenario)


def test_a_change_tells_its_progress_to_the_end_and_its_refusal_as_a_code():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        lost = Incarnation("decode-0", 1)
        drained = stub.FlipInstance(control.FlipInstanceRequest(instance="decode-0", pool="prefill"))
        first = (await anext(aiter(drained))).progress
        assert (first.instance, first.phase, first.done) == ("decode-0", control.PHASE_DRAINING, False)
        await until(lambda: party.supervisor.registry["decode-0"].state == State.DRAINING)
        party.supervisor.registry = party.supervisor.registry.lost(lost, "why")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.DrainInstance(control.DrainInstanceRequest(instance="x")).read()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert raised.value.details() == "no instance x; there are decode-0, decode-1, prefill-0"

    play(scenario)


def test_routers_hear_at_once_of_what_is_lost():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        party.tell()
        party.lose("decode-1")
        await until(lambda: names(party) == ["prefill-0", "decode-0"])

    def names(party: Party) -> list[str]:
        """What the router heard last, if anything yet."""
        return [info.name for listed in party.router.listed[-1:] for info in listed.instances]

    play(scenario)


def test_a_router_may_condemn_an_instance():
    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        party.router.say(pb.AttachRequest(lost=pb.LostInstance(name="decode-0", life=1, condemned=True)))
        await until(lambda: party.lost == [(Incarnation("decode-0", 1), True)])

    play(scenario)


def test_a_requests_life_is_told_in_order_and_who_says_nothing_is_named(monkeypatch):
    monkeypatch.setattr(control_module, "RECALL_S", 0.3)
    decision = control.Decision(at=2.0, where="router-0", session="r#0#1", what="dispatched")
    decision.figures.update({"prefill": "prefill-0", "queued_tokens": 7})

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        party.router.remembers = [decision, control.Decision(at=1.0, where="router-0", what="received")]
        told = await stub.ExplainRequest(control.ExplainRequestRequest(request_id="r"))
        assert [one.what for one in told.decisions] == ["received", "dispatched"]
        assert dict(told.decisions[1].figures.items()) == {"prefill": "prefill-0", "queued_tokens": 7}
        assert sorted(told.silent) == [
            "decode-0",
            "decode-1",
            "prefill-0",
        ]  # nobody serves at their addresses

    play(scenario)


def test_a_request_that_nobody_remembers_is_not_found(monkeypatch):
    monkeypatch.setattr(control_module, "RECALL_S", 0.3)

    async def scenario(party: Party, stub: ControlServiceStub) -> None:
        for router_remembers in ([], None):
            party.router.remembers = router_remembers
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ExplainRequest(control.ExplainRequestRequest(request_id="r"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            assert ("router-0" in (refused.value.details() or "")) == (router_remembers is None)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ExplainRequest(control.ExplainRequestRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    play(scenario)
