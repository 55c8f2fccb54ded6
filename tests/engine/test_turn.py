"""The transfer turn: one holder at a time, and no claim is lost."""

import asyncio
import random

import pytest

from penstock.engine.turn import TransferTurn


def test_one_holder_at_a_time_whoever_gives_up():
    async def main():
        turn, draw = TransferTurn(), random.Random(3)
        holders = took = 0

        async def claim(number: int):
            nonlocal holders, took
            if number % 3 == 0:
                if not turn.try_take():
                    return
            else:
                await turn.take()
            holders += 1
            took += 1
            assert holders == 1
            await asyncio.sleep(0)
            holders -= 1
            turn.give_back()

        tasks = [asyncio.create_task(claim(number)) for number in range(200)]
        for _ in range(60):
            await asyncio.sleep(0)
            task = tasks[draw.randrange(len(tasks))]
            if holders == 0:  # one who holds it gives it back by itself
                task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert turn.try_take(), "given back by the last"
        assert took > 20

    asyncio.run(main())


def test_a_claimant_that_leaves_passes_the_turn_on():
    async def main():
        turn = TransferTurn()
        assert turn.try_take()
        first, second = asyncio.create_task(turn.take()), asyncio.create_task(turn.take())
        await asyncio.sleep(0)
        turn.give_back()
        first.cancel()  # just as it is told
        async with asyncio.timeout(5):
            await second
        assert not turn.try_take()

    asyncio.run(main())


def test_what_nobody_holds_is_not_given_back():
    with pytest.raises(AssertionError):
        TransferTurn().give_back()
