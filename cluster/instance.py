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
from . import logs
from .config import InstanceSettings, build


class Instance:
    """Serves from `start` to `stop`, in the event loop of its caller."""

    server_class = InstanceServer

    def __init__(self, settings: InstanceSettings):
        logs.configure(settings.log_level, settings.log_json)
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
        return await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()


async def serve(settings: InstanceSettings, address_file: Path) -> None:
    """Serve until SIGTERM or SIGINT; `address_file` appears, with the address in it, once requests may come."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    instance = Instance(settings)
    _write(address_file, await instance.start())
    try:
        await stopped.wait()
    finally:
        await instance.stop()


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
