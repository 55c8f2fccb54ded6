"""A router as a process of its own: `python -m penstock.router.main --help`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from ..handover.config import HandoverConfig
from ..policy.fairness import Slo
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
    gc.freeze()  # what is there by now stays: looking through it for garbage would stop everything for long
    try:
        await stopped.wait()
    finally:
        await server.stop()


def main() -> None:
    """Exit code 0 after a graceful stop, 2 where an option is wrong or the port taken."""
    parser = argparse.ArgumentParser(prog="penstock-router", description="Serve a cluster's model over gRPC.")
    parser.add_argument("--controller", required=True, metavar="HOST:PORT")
    parser.add_argument("--name", default="router-0")
    parser.add_argument("--model", required=True, help="what clients call the model")
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, metavar="tokenizer.json")
    parser.add_argument("--end-token", type=int, action="append", default=[], metavar="ID")
    own = parser.add_argument_group("router", "as `router` of a cluster's configuration")
    for field in fields(RouterConfig):
        flag = f"--{field.name.replace('_', '-')}"
        if field.default is MISSING:
            promised = {"nargs": 2, "type": float, "metavar": ("TTFT_S", "TPOT_S"), "default": (0.0, 0.0)}
            own.add_argument(flag, **promised, help=f"what the {field.name} class is promised; 0 is nothing")
        else:
            own.add_argument(flag, type=type(field.default), default=field.default)
    handover = parser.add_argument_group("handover", "the same at every party of a cluster")
    for field in fields(HandoverConfig):
        flag = f"--handover-{field.name.replace('_', '-')}"
        handover.add_argument(flag, type=type(field.default), default=field.default)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        told = {field.name: getattr(options, field.name) for field in fields(RouterConfig)}
        for name in ("normal", "high"):
            ttft_s, tpot_s = told[name]
            told[name] = Slo(ttft_s=ttft_s, tpot_s=tpot_s)
        config = RouterConfig(**told)
        model = ModelInfo(
            name=options.model,
            context_tokens=options.context_tokens,
            vocabulary=options.vocabulary,
            tokenizer=options.tokenizer,
            end_tokens=tuple(options.end_token),
        )
        agreed = HandoverConfig(
            **{field.name: getattr(options, f"handover_{field.name}") for field in fields(HandoverConfig)}
        )
        asyncio.run(serve(config, options.controller, model, agreed, options.name))
    except ValueError as error:
        sys.exit(parser.error(str(error)))


if __name__ == "__main__":
    main()
