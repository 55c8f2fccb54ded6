"""Messages wait for grammars, and for nothing else; a session's order is kept."""

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import intake as module
from penstock.engine.intake import Intake
from penstock.handover.effects import FromRouter
from penstock.handover.values import Seen


def event(session: str, number: int) -> FromRouter:
    return FromRouter("r", Seen(session, 1, number))


class Gate:
    """Compiles nothing before it is opened, and tells how many came at once."""

    def __init__(self):
        self.open = threading.Event()
        self.lock = threading.Lock()
        self.here = self.most = self.calls = 0

    def prepare(self, grammar: str) -> None:
        with self.lock:
            self.here += 1
            self.calls += 1
            self.most = max(self.most, self.here)
        assert self.open.wait(20)
        with self.lock:
            self.here -= 1
        if grammar == "broken":
            raise ValueError("no grammar")


async def emptied(intake: Intake) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*intake._tasks.values())
    assert not intake._held and not intake._tasks and intake.backlog == 0


def test_only_the_session_of_a_grammar_waits_for_it():
    async def run():
        gate, posted = Gate(), []
        intake = Intake(gate.prepare, lambda *what: posted.append(what))
        slow = [event("slow", number) for number in range(3)]
        intake.take("slow", slow[0], "a grammar")
        await asyncio.sleep(0)
        intake.take("slow", slow[1])
        intake.take("other", event("other", 0))
        intake.take("slow", slow[2])
        assert posted == [("other", event("other", 0))] and intake.backlog == 3
        gate.open.set()
        await emptied(intake)
        assert posted[1:] == [("slow", one) for one in slow]

    asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=30))
def test_each_session_keeps_its_order(arrivals):
    async def run():
        posted = []
        intake = Intake(lambda grammar: None, lambda *what: posted.append(what))
        sent = []
        for number, (session, grammar, pause) in enumerate(arrivals):
            sent.append((session, event(session, number)))
            intake.take(*sent[-1], "g" if grammar else "")
            await asyncio.sleep(0.0001 if pause else 0)
        await emptied(intake)
        for session in "abc":
            assert [one for one in posted if one[0] == session] == [one for one in sent if one[0] == session]

    asyncio.run(run())


def test_few_grammars_are_compiled_at_once():
    async def run():
        gate, posted = Gate(), []
        intake = Intake(gate.prepare, lambda *what: posted.append(what))
        for number in range(5 * module.COMPILES):
            intake.take(str(number), event(str(number), 0), "g")
        async with asyncio.timeout(20):
            while gate.here < module.COMPILES:  # noqa: ASYNC110  threads come by themselves
                await asyncio.sleep(0.005)
        gate.open.set()
        await emptied(intake)
        assert gate.most == module.COMPILES and len(posted) == gate.calls == 5 * module.COMPILES

    asyncio.run(run())


def test_a_grammar_that_cannot_be_compiled_costs_its_own_message_alone():
    async def run():
        gate, posted = Gate(), []
        gate.open.set()
        intake = Intake(gate.prepare, lambda *what: posted.append(what))
        intake.take("s", event("s", 0), "broken")
        intake.take("s", event("s", 1))
        intake.take("s", event("s", 2), "sound")
        await emptied(intake)
        assert posted == [("s", event("s", number)) for number in (1, 2)]

    asyncio.run(run())


def test_what_waits_at_the_end_is_posted_no_more():
    async def run():
        gate, posted = Gate(), []
        intake = Intake(gate.prepare, lambda *what: posted.append(what))
        intake.take("s", event("s", 0), "g")
        await asyncio.sleep(0)
        intake.take("s", event("s", 1))
        closing = asyncio.create_task(intake.close())
        gate.open.set()
        await closing
        assert not posted and intake.backlog == 0 and not intake._tasks

    asyncio.run(run())
