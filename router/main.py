"""A router as a process of its own: `python -m penstock.router.main --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import fields
from pathlib import Path

from ..handover.config import HandoverConfig
from .config import ModelInfo, RouterConfig
from .server import RouterServer


async def serve(
    config: RouterConfig,
    controller: str,
    model: ModelInfo,
    handover: HandoverConfig,
    name: str = "router-0",
) -> None:
    """Serve until SIGTERM or SIGINT, then stop gracefully. Must run in the main thread."""
    server = RouterServer(config, model, controller, handover, name)
    stopped = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    await server.start()
    try:
        await stopped.wait()
    finally:
        await server.stop()


def main() -> None:
    """Exit code 0 after a graceful stop, 2 where an option is wrong or the port taken."""
    parser = argparse.ArgumentParser(prog="penstock-router", description="Serve a cluster's model over gRPC.")
    parser.add_argument("--controller", required=True, metavar="HOST:PORT")
    parser.add_argument("--host", default=RouterConfig.host)
    parser.add_argument("--port", type=int, default=RouterConfig.port)
    parser.add_argument("--name", default="router-0")
    parser.add_argument("--model", required=True, help="what clients call the model")
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, metavar="tokenizer.json")
    parser.add_argument("--end-token", type=int, action="append", default=[], metavar="ID")
    handover = parser.add_argument_group("handover", "the same at every party of a cluster")
    for field in fields(HandoverConfig):
        flag = f"--handover-{field.name.replace('_', '-')}"
        handover.add_argument(flag, dest=field.name, type=type(field.default), default=field.default)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        config = RouterConfig(host=options.host, port=options.port)
        model = ModelInfo(
            name=options.model,
            context_tokens=options.context_tokens,
            vocabulary=options.vocabulary,
            tokenizer=options.tokenizer,
            end_tokens=tuple(options.end_token),
        )
        agreed = HandoverConfig(
            **{field.name: getattr(options, field.name) for field in fields(HandoverConfig)}
        )
        asyncio.run(serve(config, options.controller, model, agreed, options.name))
    except ValueError as error:
        sys.exit(parser.error(str(error)))


if __name__ == "__main__":
    main()
