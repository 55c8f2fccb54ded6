"""Laws of what a router cannot do without: a defect is told and survived, or the process ends."""

import asyncio
import logging
import subprocess
import sys

from toy_fleet import MODEL
from toy_instance import FAST

from penstock.router.config import RouterConfig
from penstock.router.router import Router
from penstock.router.vital import vital


def test_a_defect_in_the_turns_stops_no_ticks(caplog):
    def defect():
        raise RuntimeError("of the turns")

    async def work():
        router = Router("r", RouterConfig(), FAST, MODEL)
        ticks = []
        router._turns.settle, router._evacuate = defect, lambda: ticks.append(1)
        await asyncio.sleep(5 * FAST.heartbeat_s)
        assert len(ticks) > 1 and not router._ticker.done()
        await router.stop()

    asyncio.run(work())
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


DEFECTIVE = """
import asyncio
from penstock.router.vital import vital

async def defect():
    raise RuntimeError("of the ticks")

async def main():
    vital(defect(), "ticks")
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_process_ends_with_what_is_vital_and_says_why():
    ended = subprocess.run([sys.executable, "-c", DEFECTIVE], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 70 and "of the ticks" in ended.stderr


def test_what_is_vital_may_be_told_to_stop():
    async def work():
        task = vital(asyncio.sleep(60), "sleep")
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
