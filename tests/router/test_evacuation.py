"""Sessions leave an instance that drains, by themselves and with what they have."""

import asyncio
from collections import Counter
from dataclasses import replace

from toy_fleet import ONE_AND_TWO, Fleet, fleet, generate, request, until
from toy_instance import FAST, output

from penstock.router import evacuation

PATIENT = replace(FAST, hung_after_s=20.0, silence_s=20.0, lease_s=20.0, grace_s=60.0)
"""A busy machine is no reason to prefill anything again."""
STREAMS = 9
TOKENS = 300


def play(scenario, roles: dict[str, dict] = ONE_AND_TWO) -> None:
    async def main() -> None:
        async with fleet(roles, deadlines=PATIENT) as here:
            await scenario(here)

    asyncio.run(main())


def streams(here: Fleet) -> list[asyncio.Task]:
    asked = [request((number, 2, 3), TOKENS, sampling={"seed": number}) for number in range(STREAMS)]
    return [asyncio.create_task(generate(here.address, one)) for one in asked]


async def right(tasks: list[asyncio.Task]) -> None:
    for number, heard in enumerate(await asyncio.gather(*tasks)):
        assert heard.ids == output((number, 2, 3), TOKENS, seed=number)
        assert heard.finished.usage.recoveries == 0


def owners(here: Fleet) -> Counter:
    return Counter(session.owner for session in here.router.sessions.values())


def test_all_sessions_leave_an_instance_that_drains_and_none_is_prefilled_again():
    async def scenario(here: Fleet) -> None:
        tasks = streams(here)
        await until(lambda: owners(here)["b"] >= 3 and owners(here)["a"] == 0)
        here.instances["b"].drain()
        await until(lambda: here.instances["b"].idle and owners(here) == {"c": STREAMS})
        await right(tasks)

    play(scenario)


def test_a_few_leave_at_a_time():
    async def scenario(here: Fleet) -> None:
        tasks = streams(here)
        await until(lambda: owners(here)["b"] > evacuation.AT_ONCE or owners(here)["c"] > evacuation.AT_ONCE)
        crowded = max(owners(here), key=owners(here).__getitem__)
        view = next(view for view in here.router.links.views() if view.name == crowded)
        asked = evacuation.evacuate(here.router.sessions.values(), [replace(view, draining=True)])
        assert len(asked) == evacuation.AT_ONCE
        await right(tasks)

    play(scenario)


def test_a_session_that_an_instance_cannot_decode_leaves_it():
    """It was sent there when the instance still decoded."""

    async def scenario(here: Fleet) -> None:
        here.instances["b"].prefill_tokens = 512
        tasks = streams(here)
        await until(lambda: owners(here)["b"] >= 1 and owners(here)["a"] == 0)
        here.instances["b"].decode_slots = 0
        await until(lambda: owners(here)["b"] == 0)
        await right(tasks)

    play(scenario)


def test_where_nobody_else_decodes_everything_stays():
    async def scenario(here: Fleet) -> None:
        tasks = streams(here)
        await until(lambda: owners(here)["b"] == STREAMS)
        here.instances["b"].drain()
        await right(tasks)

    play(scenario, {name: ONE_AND_TWO[name] for name in ("a", "b")})
