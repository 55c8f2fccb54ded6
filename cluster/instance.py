"""One life of an instance: an engine with both workers, behind WorkerService. An actor hosts it, or a plain process."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from ..decode_worker.phase import DecodePhase
from ..engine.server import InstanceServer
from ..prefill_worker.phase import PrefillPhase
from . import logs, processes
from .config import InstanceSettings, build


class Instance:
    """Serves from `start` to `stop`, in the event loop of its caller."""

    server_class = InstanceServer

    def __init__(self, settings: InstanceSettings):
        logs.configure(settings.log_level, settings.log_json)
        self._drain_s = settings.drain_s
        self.server = self.server_class(
            settings.name,
            settings.life,
            settings.engine,
            settings.handover,
            settings.prefill_tokens,
            settings.decode_slots,
            PrefillPhase(),
            DecodePhase(),
            host=settings.host,
            cost=settings.cost,
            itl_target_s=settings.itl_target_s,
        )

    async def start(self) -> str:
        """Load the model and listen; the address. `ValueError` says in one sentence what of the settings is wrong."""
        address = await self.server.start()
        processes.freeze()
        return address

    async def drain(self) -> None:
        """Let all that runs here be moved away; returns when nothing is left, or after `drain_s`."""
        await self.server.drain(self._drain_s)

    async def stop(self) -> None:
        await self.server.stop()


async def serve(settings: InstanceSettings, address_file: Path) -> None:
    """Serve until SIGINT, or until SIGTERM and all that runs here has been moved away.

    `address_file` appears, with the address in it, once requests may come.
    """
    told, stopped = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
    instance = Instance(settings)
    _write(address_file, await instance.start())
    ends = [asyncio.create_task(_drained(instance, told)), asyncio.create_task(stopped.wait())]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()
    finally:
        for end in ends:
            end.cancel()
        await instance.stop()


async def _drained(instance: Instance, told: asyncio.Event) -> None:
    await told.wait()
    await instance.drain()


def _write(path: Path, text: str) -> None:
    """The file is there whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def main() -> None:
    """Exit code 0 after a stop, 2 where the settings are wrong."""
    parser = argparse.ArgumentParser(
        prog="penstock-instance", description="Run one instance in this process."
    )
    parser.add_argument("settings", help="its settings, a JSON object (InstanceSettings)")
    parser.add_argument("--address-file", type=Path, required=True, help="where to write its address")
    options = parser.parse_args()
    try:
        settings = build(InstanceSettings, json.loads(options.settings))
        asyncio.run(serve(settings, options.address_file))
    except ValueError as error:
        sys.exit(parser.error(str(error)))


if __name__ == "__main__":
    main()
