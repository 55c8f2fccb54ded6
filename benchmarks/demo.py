"""`make demo`: one request through a cluster on this machine, moved between instances while it streams."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..client import Client, Delta, Move, PenstockError, Started
from ..cluster import config as cluster_config
from ..cluster import processes
from ..cluster.launcher import Cluster
from .gaps import Arrival, Downtime, downtimes, turns

PROMPT = "Return a new"
SEED = 7
TOKENS = 256
TEMPERATURE = 0.8
MOVE_AT = 96
"""Tokens that the client has when it asks for the move."""
STYLES = {"prefill-0": "magenta", "decode-0": "cyan", "decode-1": "green"}


@dataclass(frozen=True)
class Outcome:
    """All that the client saw of the request."""

    started: Started
    arrivals: tuple[Arrival, ...]
    token_ids: tuple[int, ...]
    move: Move

    @property
    def whole(self) -> bool:
        """Every token came exactly once, in order."""
        following = [arrival.first_index + arrival.tokens for arrival in self.arrivals]
        return [arrival.first_index for arrival in self.arrivals] == [0, *following[:-1]] and (
            following[-1] == len(self.token_ids) == TOKENS
        )

    @property
    def downtime(self) -> Downtime:
        """Of the change of owner that the move made."""
        return next(found for found in downtimes(self.arrivals) if found.source == self.move.source)


def run(console: Console) -> bool:
    """Show it all; whether the request was moved and its tokens are those of `transformers`."""
    config = cluster_config.default()
    config = replace(config, router=replace(config.router, port=0))
    began = time.monotonic()
    with Cluster.start(config, progress=lambda line: console.print(line, style="dim")) as cluster:
        assert cluster.started is not None
        console.print(
            f"1 prefill and 2 decode instances serve at {cluster.address}, "
            f"first token {cluster.started.first_token_s:.1f} s after the start\n",
            style="dim",
        )
        with Client(cluster.address) as client:
            outcome = stream(client, console)
        mark = cluster.record.cluster_id
    _tell_segments(outcome, console)
    _tell_downtime(outcome, console)
    same = _tell_verdict(outcome, config.engine.folder, console)
    left = processes.marked(mark)
    console.print(
        f"stopped, {len(left)} processes left; {time.monotonic() - began:.0f} s in all", style="dim"
    )
    return same and outcome.move.done and outcome.whole and not left


def stream(client: Client, console: Console) -> Outcome:
    """Stream the completion to the terminal, and ask for the move in mid-stream."""
    screen = Screen(console)
    arrivals: list[Arrival] = []
    token_ids: list[int] = []
    with ThreadPoolExecutor(1) as mover:
        moving: Future[tuple[Move, ...]] | None = None
        started = None
        events = client.generate(
            PROMPT, seed=SEED, temperature=TEMPERATURE, max_tokens=TOKENS, ignore_eos=True
        )
        for event in events:
            now = time.perf_counter()
            match event:
                case Started():
                    started = event
                    screen.begin(PROMPT)
                case Delta():
                    arrivals.append(Arrival(now, event.first_index, len(event.token_ids), event.instance))
                    token_ids.extend(event.token_ids)
                    screen.show(event)
            if started is not None and moving is None and len(token_ids) >= MOVE_AT:
                moving = mover.submit(client.migrate, started.request_id)
        assert started is not None and moving is not None
        (move,) = moving.result()
    screen.end()
    return Outcome(started, tuple(arrivals), tuple(token_ids), move)


class Screen:
    """The text as it comes, in the colour of the instance that made it, with its name where that changes."""

    def __init__(self, console: Console):
        self._console = console
        self._instance = ""

    def begin(self, prompt: str) -> None:
        self._write(prompt, "bold")

    def show(self, delta: Delta) -> None:
        if delta.instance != self._instance:
            self._instance = delta.instance
            self._write(f" [{delta.instance}] ", f"reverse {STYLES[delta.instance]}")
        self._write(delta.text, STYLES[delta.instance])

    def end(self) -> None:
        self._console.print("\n")

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), end="")


def _tell_segments(outcome: Outcome, console: Console) -> None:
    for turn in turns(outcome.arrivals):
        first, last = outcome.arrivals[turn.start], outcome.arrivals[turn.stop - 1]
        end = last.first_index + last.tokens - 1
        line = f"tokens {first.first_index:3d} to {end:3d} are of {first.instance}"
        console.print(Text(line, STYLES[first.instance]))


def _tell_downtime(outcome: Outcome, console: Console) -> None:
    move = outcome.move
    if not move.done:
        console.print(f"the move was not done: {move.reason}", style="red")
        return
    downtime = outcome.downtime
    console.print(
        f"live migration from {move.source} to {move.destination}: downtime [bold]{downtime.ms:.1f} ms[/] = "
        f"[bold]{downtime.steps:.1f} steps[/] "
        f"(gap before token {downtime.index}: {downtime.gap_ms:.1f} ms; median inter-token latency of "
        f"{downtime.destination}: {downtime.itl_ms:.1f} ms)"
    )


def _tell_verdict(outcome: Outcome, folder: Path, console: Console) -> bool:
    """Whether a `transformers` run of the same checkpoint, in this process and with the same draws, gives the same."""
    from tokenizers import Tokenizer

    from .compare import compare
    from .reference import Reference

    prompt = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPT).ids
    logits = Reference(folder).logits(prompt, outcome.token_ids)
    found = compare(outcome.token_ids, logits, TEMPERATURE, SEED)
    if found.mismatched:
        first = found.tokens - found.mismatched
        console.print(f"OTHER TOKENS than transformers from index {first} on", style="bold red")
    else:
        ties = f" ({found.ties} rounding ties)" if found.ties else ""
        console.print(
            f"same tokens: all {found.tokens} are those of transformers, run in one process with the same draws{ties}",
            style="bold green",
        )
    return not found.mismatched


def main() -> int:
    """Exit code 0 where all went as it should, 1 where not, 2 where the cluster cannot start."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        return 0 if run(console) else 1
    except (ValueError, OSError, PenstockError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
