"""`penstock up`: a cluster in the foreground."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console

from ..client import Instance, PenstockError
from ..cluster import processes
from ..cluster.config import Config, default, load
from ..cluster.registry import RESTARTED
from .calls import told
from .signals import interrupt_once

if TYPE_CHECKING:
    from ..cluster.launcher import Cluster

GIB = 1 << 30
LOOK_S = 1.0
"""Between two looks at the instances."""


@click.command("up")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--model", metavar="DIR", help="Folder of a Hugging Face checkpoint. Default: the embedded one."
)
@click.option("--prefill", type=int, metavar="N", help="Instances of the prefill pool.")
@click.option("--decode", type=int, metavar="N", help="Instances of the decode pool.")
@click.option("--routers", type=int, metavar="N", help="Routers, at consecutive ports.")
@click.option("--port", type=int, metavar="P", help="The first router's port; 0 takes a free one.")
@click.option("--transport", metavar="NAME", help="How KV travels: auto, local, gloo or nccl.")
@click.option("--ray-address", metavar="ADDR", help="Join this Ray cluster. Default: start Ray here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object once it serves.")
def command(config: str | None, as_json: bool, **options: Any) -> None:
    """Start a cluster and serve until Ctrl-C or `penstock down`.

    CONFIG is a YAML file; options override it. Without either: the embedded checkpoint, one prefill and two decode
    instances on this machine.
    """
    began = time.monotonic() - processes.age_s(os.getpid())
    settled = configured(load(config) if config else default(), **options)
    from ..cluster.launcher import Cluster  # Ray takes a second to import, and no typo should wait for it

    console = Console(stderr=True, highlight=False)
    interrupt_once()
    if not is_loopback(settled.router.host):
        host = settled.router.host
        console.print(
            f"warning: router.host is {host}, and whoever reaches it may do everything: nobody is authenticated"
        )
    with (
        told(),
        Cluster.start(settled, progress=console.print, began=began, foreground=True) as cluster,
    ):
        try:
            _announce(cluster, as_json)
            _tell_changes(cluster, console)
        except KeyboardInterrupt:
            return


def configured(
    config: Config,
    model: str | None,
    prefill: int | None,
    decode: int | None,
    routers: int | None,
    port: int | None,
    transport: str | None,
    ray_address: str | None,
) -> Config:
    """`config` with the options that were given in place of its own values."""
    return replace(
        config,
        engine=_changed(config.engine, model=model, transport=transport),
        router=_changed(config.router, port=port),
        cluster=_changed(
            config.cluster, prefill=prefill, decode=decode, routers=routers, ray_address=ray_address
        ),
    )


def _changed(part: Any, **values: object) -> Any:
    return replace(part, **{name: value for name, value in values.items() if value is not None})


def is_loopback(host: str) -> bool:
    """Only this machine reaches what listens there. A name but `localhost` may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tell_changes(cluster: Cluster, console: Console) -> NoReturn:
    """Until a signal: a line for each change of an instance."""
    before = cluster.instances()
    while True:
        time.sleep(LOOK_S)
        with suppress(PenstockError):  # the controller is away, and comes back
            now = cluster.instances()
            for line in changes(before, now):
                console.print(line)
            before = now


def changes(before: Sequence[Instance], now: Sequence[Instance]) -> Iterator[str]:
    """What became of the instances, a line for each whose state, life or pool is another."""
    were = {instance.name: instance for instance in before}
    for instance in now:
        was = were.get(instance.name)
        if was and was.life == instance.life and was.pool != instance.pool:
            yield f"{instance.name} is in the {instance.pool} pool now"
        elif was is None or (was.state, was.life) != (instance.state, instance.life):
            yield f"{instance.name} {_became(was, instance)}"
    for name in were.keys() - {instance.name for instance in now}:
        yield f"{name} has ended"


def _became(was: Instance | None, instance: Instance) -> str:
    anew = instance.restarts > 0
    match instance.state:
        case "serving":
            return "serves again" if anew else "serves"
        case "starting":
            return "starts anew" if anew else "starts"
        case "draining":
            return "drains"
        case "pending":
            return f"waits for room: {instance.reason}"
        case "refused":
            return f"is refused: {instance.reason}"
    if instance.reason == RESTARTED:
        return "ends, to start anew"
    if was and was.life == instance.life and was.state == "draining":
        return "has ended"
    return f"is lost: {instance.reason}" if instance.reason else "is lost"


def _announce(cluster: Cluster, as_json: bool) -> None:
    started, instances = cluster.started, cluster.instances()
    assert started is not None
    memory = started.memory
    if as_json:
        figures = {
            "address": cluster.address,
            "pid": os.getpid(),
            "first_token_s": round(started.first_token_s, 3),
            "memory_bytes": memory.pss_bytes,
            "rss_bytes": memory.rss_bytes,
            "instances": [instance.name for instance in instances],
        }
        click.echo(json.dumps(figures))
        return
    click.echo(
        f"{cluster.model.name} at {cluster.address}: {', '.join(instance.name for instance in instances)}"
    )
    click.echo(
        f"first token {started.first_token_s:.1f} s after the command; {memory.pss_bytes / GIB:.2f} GiB in all "
        f"({memory.rss_bytes / GIB:.2f} GiB if shared pages are counted in each process)"
    )
    if cluster.record.temp_dir:
        click.echo(f"logs in {cluster.record.temp_dir}/session_latest/logs")
    prompt = '"Return the"' if cluster.model.tokenizer else "--token-ids 1,2,3"
    click.echo(f"try: penstock generate {prompt}; Ctrl-C or `penstock down` stops the cluster")
