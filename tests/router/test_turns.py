"""Laws of a busy router: turns by class and tenant, bounds, early refusals, and nothing kept of who has gone."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from toy_fleet import MODEL
from toy_instance import FAST

from penstock.handover.values import Epoch, Incarnation, News, SamplingParams, Start, TokenRecord
from penstock.policy.cost import CostModel, Law, Piece, StepCost
from penstock.policy.fairness import Slo
from penstock.policy.state import InstanceView, LoadView, Priority
from penstock.proto import router_pb2 as pb
from penstock.router.attach import _waiting
from penstock.router.config import RouterConfig
from penstock.router.refusal import Refused
from penstock.router.router import Router
from penstock.router.wire import Call


class Wires:
    """Stands for the links: views as they are set, and all that was told."""

    block_size = 16

    def __init__(self):
        load = LoadView(
            total_blocks=1000,
            free_blocks=1000,
            prefill_tokens=100,
            decode_slots=64,
            block_size=16,
            step_s=0.1,
        )
        self.held = {name: InstanceView(name=name, life=1, address=f"{name}:1", load=load) for name in "ab"}
        self.told = []

    def load(self, **changes):
        """Of all instances."""
        for name, view in self.held.items():
            self.held[name] = replace(view, load=replace(view.load, **changes), seen_at=1e12)

    def views(self):
        return list(self.held.values())

    def view(self, instance):
        return self.held.get(instance.instance)

    def tell(self, instance, message):
        self.told.append((instance, message))

    def step_s(self, instance):
        return 0.0

    def drains(self, instance):
        return False

    async def close(self):
        pass

    @property
    def started(self):
        """Requests in the order in which they were sent to an instance."""
        return [message.session.partition("#")[0] for _, message in self.told if isinstance(message, Start)]


@asynccontextmanager
async def router(model=MODEL, **config):
    made = Router("r", RouterConfig(**{"ahead_s": 0.5} | config), FAST, model)
    made.links = Wires()
    try:
        yield made
    finally:
        for session in list(made.sessions.values()):
            made.close(session)
        assert not len(made._turns) and not made._turns._tenants, "nothing is kept of who has gone"
        await made.stop()


BUSY = {"queued_tokens": 1000}
FREE = {"queued_tokens": 0}


def call(name, tenant="", priority=Priority.NORMAL, prompt=10, max_tokens=20, **more):
    params = SamplingParams(max_tokens=max_tokens)
    attempt = more.pop("attempt", 1)
    return Call(name, attempt, tuple(range(prompt)), params, tenant=tenant, priority=priority, **more)


def refusal(opened):
    """What it says, and after how many seconds it asks to come back."""
    with pytest.raises(Refused) as refused:
        opened()
    status = status_pb2.Status.FromString(refused.value.details())
    retry = error_details_pb2.RetryInfo()
    told = [detail.Unpack(retry) for detail in status.details]
    retry_s = retry.retry_delay.ToTimedelta().total_seconds() if any(told) else 0
    return refused.value.code, refused.value.message, retry_s


async def error_of(session):
    with pytest.raises(Refused) as refused:
        async for _ in session.deltas():
            pass
    return refused.value


def scenario(work):
    """Run it in a loop of its own, within ten seconds."""
    return asyncio.run(asyncio.wait_for(work(), 10))


def test_requests_wait_while_all_have_enough_and_go_by_class_and_tenant():
    async def work():
        async with router() as now:
            now.links.load(**BUSY)
            for name, tenant, priority in (
                ("a1", "a", Priority.NORMAL),
                ("a2", "a", Priority.NORMAL),
                ("a3", "a", Priority.NORMAL),
                ("b1", "b", Priority.NORMAL),
                ("c1", "c", Priority.HIGH),
            ):
                now.open([call(name, tenant, priority)])
            assert now.links.started == []
            now.links.load(**FREE)
            now._have_turns()
            assert now.links.started == ["c1", "a1", "b1", "a2", "a3"]

    scenario(work)


def test_news_of_instances_brings_turns_without_waiting_for_a_heartbeat():
    async def work():
        async with router() as now:
            now.links.load(**BUSY)
            now.open([call("r")])
            now.links.load(**FREE)
            now.heard(Incarnation("a", 1), News("other", Epoch(1, 1), 0))
            await asyncio.sleep(FAST.heartbeat_s / 1.5)
            assert now.links.started == ["r"]

    scenario(work)


def test_output_is_on_the_tenants_account():
    async def work():
        async with router() as now:
            (session,) = now.open([call("a0", "a")])
            now.open([call("b0", "b", prompt=12)])
            records = tuple(TokenRecord(1) for _ in range(10))
            now.heard(session.machine.owner, News(session.key, session.machine.epoch, 0, records))
            await asyncio.sleep(2 * FAST.heartbeat_s)
            now.links.load(**BUSY)
            now.open([call("a1", "a")])
            now.open([call("b1", "b")])
            now.links.load(**FREE)
            now._have_turns()
            assert now.links.started[2:] == ["b1", "a1"]

    scenario(work)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    async def work():
        async with router(queue=2) as now:
            now.links.load(**BUSY)
            now.open([call("1")])
            now.open([call("2")])
            code, message, retry_s = refusal(lambda: now.open([call("3")]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "2 requests wait" in message
            assert 1.0 <= retry_s <= 1.1, "two instances begin 2000 tokens a second, and have 1000 each"

    scenario(work)


def choices(name, count, **more):
    one = call(name, **more)
    return [replace(one, params=replace(one.params, choice=number)) for number in range(count)]


def test_a_queue_bounds_all_that_waits_choices_and_resumed_requests_too():
    async def work():
        async with router(queue=4) as now:
            now.links.load(**BUSY)
            now.open(choices("three", 3))
            assert refusal(lambda: now.open(choices("many", 2)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            for number in range(4):
                now.open([call(f"other{number}", attempt=2)])
            assert refusal(lambda: now.open([call("x", attempt=2)]))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            now.open([call("other0", attempt=3)])
            now.open([call("last")])
            assert len(now._turns) == 8

    scenario(work)


def test_who_is_refused_for_waiting_too_long_was_served_nothing():
    async def work():
        async with router(dispatch_wait_s=0.1) as now:
            now.links.load(**BUSY)
            for number in range(4):
                (session,) = now.open([call(f"v{number}", "victim", prompt=1000)])
            await error_of(session)
            assert now._turns._ledger.count("victim") == 0
            assert now._turns._ledger.moved_tokens == 0

    scenario(work)


def test_what_would_miss_its_slo_is_refused_and_what_would_not_is_taken():
    async def work():
        slos = {"normal": Slo(ttft_s=0.8), "high": Slo(ttft_s=3.0)}
        async with router(**slos) as now:
            now.links.load(**BUSY)
            code, message, retry_s = refusal(lambda: now.open([call("late")]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "0.8 s" in message and 0.1 <= retry_s < 1
            now.open([call("patient", priority=Priority.HIGH)])
            now.open([call("resumed", attempt=2, received=(1, 2))])
            now.links.load(queued_tokens=100)
            now.open([call("early")])
            assert set(now.links.started) == {"patient", "resumed", "early"}

    scenario(work)


def test_a_router_that_refuses_all_takes_again_as_soon_as_its_instances_are_idle():
    """What it gave them counts until a view can show it, though nothing is dispatched any more."""

    async def work():
        async with router(normal=Slo(ttft_s=1.0)) as now:
            for name in ("first", "second"):
                now.open([call(name, prompt=2000)])
            code, *_ = refusal(lambda: now.open([call("more", prompt=50)]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            now.links.load(**FREE)
            now.open([call("later", prompt=50)])
            assert now.links.started == ["first", "second", "later"]

    scenario(work)


def test_the_controller_hears_how_many_wait_and_for_which_work():
    async def work():
        async with router(priced(), normal=Slo(tpot_s=0.05), queue=4) as now:
            assert _waiting(now) == pb.Waiting()
            for load, told in (
                ({"decoding": 8, "step_s": 0.06, **FREE}, pb.Waiting(decode=1)),
                ({"decoding": 0, "step_s": 0.01, **BUSY}, pb.Waiting(prefill=2)),
            ):
                now.links.load(**load)
                now.open([call(f"r{len(now.sessions)}")])
                now._have_turns()
                assert _waiting(now) == told
            counts = now.attainment
            for _ in range(now.config.queue + 1):
                with suppress(Refused):
                    now.open([call(f"r{len(now.sessions)}")])
            assert now.attainment == replace(counts, first_tokens=counts.first_tokens + 3)
            now.first_token(call("x"), 9.0, 0.0)
            assert now.attainment.outputs == 0, "nothing is promised of first tokens"
            now.links.load(**FREE)
            now._have_turns()
            assert _waiting(now) == pb.Waiting()

    scenario(work)


def test_tokens_that_would_be_slower_than_promised_are_waited_with():
    async def work():
        async with router(normal=Slo(tpot_s=0.05)) as now:
            now.links.load(decoding=8, step_s=0.06)
            now.open([call("normal")])
            now.open([call("high", priority=Priority.HIGH)])
            assert now.links.started == ["high"], "nothing is promised to its class"
            now.links.load(decoding=8, step_s=0.02)
            now._have_turns()
            assert now.links.started == ["high", "normal"]

    scenario(work)


def test_first_tokens_that_come_later_than_foreseen_make_it_refuse_more():
    async def work():
        async with router(normal=Slo(ttft_s=2.0), ahead_s=0.1) as now:
            now.links.load(queued_tokens=500)
            now.open([call("taken", prompt=50)])
            for _ in range(20):
                now.first_token(call("x"), 9.0, 0.5)
            code, *_ = refusal(lambda: now.open([call("refused", prompt=50)]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    scenario(work)


def test_nobody_waits_for_ever():
    async def work():
        async with router(dispatch_wait_s=0.1) as now:
            now.links.load(**BUSY)
            (busy,) = now.open([call("busy")])
            error = await error_of(busy)
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_s > 0
            now.links.held.clear()
            (alone,) = now.open([call("alone")])
            error = await error_of(alone)
            assert error.code is grpc.StatusCode.UNAVAILABLE and error.final
            assert now.links.started == []

    scenario(work)


def test_who_leaves_the_queue_or_resumes_gives_its_place_up():
    async def work():
        async with router() as now:
            now.links.load(**BUSY)
            (gone,) = now.open([call("gone", "a")])
            (first,) = now.open([call("again", "a")])
            now.open([call("again", "a", attempt=2)])
            assert first.closed
            now.close(first)
            now.close(gone)
            now.close(gone)
            now.links.load(**FREE)
            now._have_turns()
            assert now.links.started == ["again"] and len(now.sessions) == 1

    scenario(work)


def test_a_request_that_another_router_had_begun_does_not_wait_again():
    async def work():
        async with router() as now:
            now.links.load(**BUSY)
            now.open([call("new", priority=Priority.HIGH)])
            now.open([call("resumed", attempt=2, received=(1, 2))])
            assert now.links.started == ["resumed"]

    scenario(work)


def test_a_recovered_request_had_its_turn():
    async def work():
        async with router() as now:
            (session,) = now.open([call("r")])
            now.links.load(**BUSY)
            now.open([call("new")])
            now.lost(session.machine.owner, "killed")
            assert now.links.started == ["r", "r"]

    scenario(work)


def test_what_fits_no_instance_is_refused_before_it_waits():
    async def work():
        async with router() as now:
            now.links.load(total_blocks=4, **BUSY)
            code, message, retry_s = refusal(lambda: now.open([call("huge", prompt=100)]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "fit" in message and retry_s == 0

    scenario(work)


def priced():
    piece = Piece(base_s=0.005, per_token_s=1e-3, per_chunk_work_s=0.0, per_context_token_s=0.0)
    law = Law(split_tokens=64, below=piece, above=piece)
    step = StepCost(prefill=law, decode=law)
    return replace(MODEL, cost=CostModel(step=step, kv_bytes_per_token=1, capacity_tokens=16000))


def test_a_next_turn_is_sent_to_whom_had_the_one_before():
    """And another tenant's equal prompt is not drawn there."""

    async def work():
        async with router(priced()) as now:
            now.links.load(prefill_tokens=512)
            turn = tuple(range(320))
            owners = set()
            for number in range(6):
                (session,) = now.open([replace(call(f"r{number}", max_tokens=1), prompt=turn)])
                owners.add(session.machine.owner)
                turn = (*turn, *range(number, number + 16))
            (first,) = owners
            shape = now.shape(replace(call("x", "other"), prompt=turn), ())
            assert not shape.cached
            assert now.shape(replace(call("x"), prompt=turn), ()).cached == {
                (first.instance, 1): 320 + 5 * 16
            }

    scenario(work)


def test_lengths_of_outputs_are_learnt_by_application():
    async def work():
        async with router() as now:
            for number in range(20):
                now.completed(call(f"r{number}", application="chat"), (1,) * 7, None, 0.0)
            assert now.shape(call("x", application="chat"), ()).expected_tokens == 7
            assert now.shape(call("x", application="chat"), (1, 2)).expected_tokens == 5
            assert (now.attainment.outputs, now.attainment.outputs_in_time) == (20, 20)

    scenario(work)


def test_what_was_promised_and_kept_is_counted_by_class():
    async def work():
        async with router(high=Slo(ttft_s=1.0, tpot_s=0.1)) as now:
            for priority, seconds in ((Priority.NORMAL, 9.0), (Priority.HIGH, 0.5), (Priority.HIGH, 2.0)):
                now.first_token(call("x", priority=priority), seconds, 0.0)
                now.completed(call("x", priority=priority), (1,), None, seconds / 10)
            counts = now.attainment
            assert (counts.first_tokens, counts.first_tokens_in_time) == (3, 2)
            assert (counts.outputs, counts.outputs_in_time) == (3, 2)

    scenario(work)


def test_a_late_first_token_is_the_decode_pools_where_requests_wait_to_decode():
    async def work():
        async with router(priced(), normal=Slo(ttft_s=1.0, tpot_s=0.05)) as now:
            now.links.load(decoding=8, step_s=0.06)
            now.open([call("waits")])
            now.first_token(call("x"), 9.0, 0.0)
            now.first_token(call("x"), 0.5, 0.0)
            counts = now.attainment
            assert (counts.outputs, counts.outputs_in_time) == (1, 0)
            assert (counts.first_tokens, counts.first_tokens_in_time) == (1, 1)

    scenario(work)


def test_without_a_limit_nobody_waits():
    async def work():
        async with router(ahead_s=0.0) as now:
            now.links.load(**BUSY)
            now.open([call("r")])
            assert now.links.started == ["r"]

    scenario(work)


@pytest.mark.parametrize("wrong", [{"dispatch": "random"}, {"queue": 0}, {"ahead_s": -1.0}])
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=f"router.{next(iter(wrong))}"):
        RouterConfig(**wrong)
