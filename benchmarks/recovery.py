"""What clients feel of an instance, a router or the controller that dies or hangs, and what is computed again for it.

In every round a dozen seeded streams run on one prefill and two decode instances, then a real signal strikes one
process, or an operator drains or flips an instance, or restarts all of them one by one. The gap of a stream is its
longest wait for a token from then on. Counted are the streams that the struck instance owned; for a prefill instance
those whose prompt it was working on, whose gap begins with their request; for a router, beside which there is another,
for the controller and for a rolling restart all. What moves requests should be felt for no more than a few steps: such
a gap is told in steps too, a step being the median wait of that stream from then on. Afterwards every stream is asked
for once more, undisturbed, and must be the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..client import AsyncClient, Instance, PenstockError, Progress
from ..cluster import processes
from ..cluster.config import default
from ..cluster.controller import INSTANCE
from ..cluster.launcher import ROUTER, Cluster
from .compare import compare
from .figures import Report, progress, quantile
from .reference import Reference
from .witness import TEMPERATURE, Asked, Witness, grown, until

logger = logging.getLogger(__name__)

SIGNALS = {
    "kill_decode": signal.SIGKILL,
    "kill_prefill": signal.SIGKILL,
    "hang": signal.SIGSTOP,
    "kill_router": signal.SIGKILL,
    "kill_controller": signal.SIGKILL,
}
MOVING = ("drain", "flip", "rolling")
"""What an operator does, for which requests are moved."""
KINDS = (*SIGNALS, *MOVING)
ROUTERS = 2
"""The clients of one that is killed go on at the other."""
DECODE = 2
"""Instances of the decode pool."""
TOGETHER = 6
"""Streams that begin at a time: as many as a lost decode instance has in the mean."""
PROMPT, LONG_PROMPT = 256, 2048
LONG = 4
"""Of the streams that a prefill instance dies with."""
OLD = 24
"""Tokens of every stream when the fault strikes."""
GO_ON = 12
"""That every stream makes after it."""
MOST = 2000
MOST_ROLLING = 4000
"""A stream outlives the restart of all instances."""
LOOK_S = 0.1
"""How often it is looked at what instances compute that are being replaced."""
AT_ONCE = 12
BACK_S = 90.0
"""How long a process that was ended may take to be there again."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int = 5
    """Of each kind."""
    seed: int = 0
    kinds: Sequence[str] = KINDS


@dataclass
class Found:
    """What was measured so far."""

    gaps_ms: dict[str, list[float]] = field(default_factory=dict)
    gap_steps: dict[str, list[float]] = field(default_factory=dict)
    recomputed: dict[str, list[float]] = field(default_factory=dict)
    """Tokens of each round, over its streams that were struck."""
    reprefill_ms: list[float] = field(default_factory=list)
    """Time to the first token of streams that began as many at a time as are recovered."""
    witnesses: list[Witness] = field(default_factory=list)
    mismatched: int = 0
    ties: int = 0


def measure(plan: Plan, say: Say = logger.info, instance: str = INSTANCE, router: str = ROUTER) -> Report:
    """Start a cluster of the embedded checkpoint and strike it. `instance` and `router` as `Cluster.start` has them."""
    config = default()
    config = replace(
        config,
        router=replace(config.router, port=0),
        cluster=replace(config.cluster, decode=DECODE, routers=ROUTERS),
    )
    found = Found()
    with Cluster.start(config, progress=say, instance=instance, router=router) as cluster:
        processes.freeze()  # else this process has pauses of its own
        with progress("faults", len(plan.kinds) * plan.rounds) as advance:
            asyncio.run(_strike_all(plan, cluster, found, advance))
        say("every stream again, undisturbed")
        again = asyncio.run(_undisturbed(cluster.address, found.witnesses))
    compare_all(found, again, config.engine.folder, say)
    return report(plan, found)


async def _strike_all(plan: Plan, cluster: Cluster, found: Found, advance: Callable[[int], None]) -> None:
    draw = random.Random(plan.seed)
    async with AsyncClient(cluster.address) as client, AsyncClient(cluster.controller_address) as control:
        for number in range(plan.rounds):
            for kind in plan.kinds:
                striker = Striker(cluster, client, control, found, draw)
                await striker.round(kind, f"recovery-{plan.seed}-{number}-{kind}")
                advance(1)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to strike, and whether a stream is struck with it, by its owner."""

    name: str
    pid: int
    owned: Callable[[str], bool]


class Striker:
    """One round: streams, a fault among them, and what came of it."""

    def __init__(
        self, cluster: Cluster, client: AsyncClient, control: AsyncClient, found: Found, draw: random.Random
    ):
        self._cluster = cluster
        self._client = client
        self._control = control
        self._found = found
        self._draw = draw
        self._vocabulary = cluster.model.vocabulary
        self._computed: dict[int, int] = {}
        """By each process, as far as it was looked at."""

    async def round(self, kind: str, name: str) -> None:
        witnesses: list[Witness] = []
        most = MOST_ROLLING if kind == "rolling" else MOST
        for part in ("a", "b"):
            some = [self._begin(f"{name}-{part}{place}", PROMPT, most) for place in range(TOGETHER)]
            await grown(some, 1)
            self._found.reprefill_ms += [one.ttft_ms for one in some if one.arrivals]
            witnesses += some
        await grown(witnesses, OLD)
        before = await self._instances()
        if kind == "kill_prefill":
            witnesses += [self._begin(f"{name}-long{place}", LONG_PROMPT) for place in range(LONG)]
            await asyncio.sleep(self._draw.uniform(0.05, 0.15))
        target = await self._aim(kind, before, witnesses)
        now = await self._instances()
        computed = _computed(before)
        begun = _computed(now).get(target.pid, 0) - computed.get(target.pid, 0)
        self._computed = dict(computed)
        at = time.perf_counter()
        await self._strike(kind, target)
        await grown(witnesses, GO_ON, [len(one.tokens) for one in witnesses])
        struck = [one for one in witnesses if target.owned(one.owner_at(at))]
        gaps = [gap for one in struck if (gap := one.gap_ms(at)) is not None]
        self._found.gaps_ms.setdefault(kind, []).extend(gaps)
        steps = [gap for one in struck if (gap := one.gap_steps(at)) is not None]
        self._found.gap_steps.setdefault(kind, []).extend(steps)
        self._computed |= _computed(await self._back(kind, target))
        since = sum(count - computed.get(pid, 0) for pid, count in self._computed.items())
        new = sum(len(one.asked.prompt) for one in struck if not one.owner_at(at)) - begun
        if struck:
            again = max(0, since - max(0, new)) / len(struck)
            self._found.recomputed.setdefault(kind, []).append(again)
        await asyncio.gather(*(one.close() for one in witnesses))
        self._found.witnesses += witnesses

    def _begin(self, name: str, prompt_tokens: int, most: int = MOST) -> Witness:
        return Witness.begin(self._client, Asked.draw(name, prompt_tokens, self._vocabulary), most)

    async def _aim(self, kind: str, instances: Sequence[Instance], witnesses: Sequence[Witness]) -> Target:
        if kind == "rolling":
            return Target("", 0, lambda owner: True)
        if kind == "kill_controller":
            return Target("", self._actor("Controller"), lambda owner: True)
        if kind == "kill_router":
            routers = (await self._control.cluster()).routers
            return Target("", max(routers, key=lambda one: one.sessions).pid, lambda owner: True)
        if kind == "kill_prefill":
            prefill = next(one for one in instances if one.pool == "prefill")
            return Target(prefill.name, prefill.pid, lambda owner: owner in ("", prefill.name))
        owners = [one.instance for one in witnesses]
        able = [one for one in instances if one.pool == "decode" and one.name in owners]
        chosen = self._draw.choice(able)
        return Target(chosen.name, chosen.pid, lambda owner: owner == chosen.name)

    async def _strike(self, kind: str, target: Target) -> None:
        if kind in SIGNALS:
            os.kill(target.pid, SIGNALS[kind])
        elif kind == "drain":
            await _done(self._control.drain(target.name))
        elif kind == "flip":
            await _done(self._control.flip(target.name, "prefill"))
        else:
            await self._restart_all()

    async def _restart_all(self) -> None:
        """What the lives computed that come to their ends is looked at meanwhile."""
        restarting = asyncio.create_task(_done(self._control.restart()))
        while not restarting.done():
            self._computed |= _computed(await self._instances())
            await asyncio.wait([restarting], timeout=LOOK_S)
        await restarting

    def _actor(self, kind: str) -> int:
        return next(pid for pid in processes.marked(self._cluster.record.cluster_id) if kind in _title(pid))

    async def _instances(self) -> tuple[Instance, ...]:
        return (await self._control.cluster()).instances

    async def _back(self, kind: str, target: Target) -> tuple[Instance, ...]:
        """Until all that was ended is there again, and the routers hear of it; the instances before that is undone."""
        if kind in ("drain", "flip"):
            after = await self._instances()
            undo = (
                self._control.scale("decode", DECODE)
                if kind == "drain"
                else self._control.flip(target.name, "decode")
            )
            await _done(undo)
            return after
        deadline = time.monotonic() + BACK_S
        while time.monotonic() < deadline:
            try:
                known = await self._control.cluster(timeout_s=2.0)
                through = await self._client.cluster(timeout_s=2.0)
            except PenstockError:
                await asyncio.sleep(0.1)
                continue
            pids = [one.pid for one in (*known.instances, *known.routers)]
            serving = [one for one in through.instances if one.state == "serving"]
            whole = len(serving) == len(known.instances) == 1 + DECODE and len(known.routers) == ROUTERS
            if whole and target.pid not in pids:
                return known.instances
            await asyncio.sleep(0.1)
        raise TimeoutError(f"after {kind} the cluster was not whole again within {BACK_S:g} s")


async def _done(progress: AsyncIterator[Progress]) -> None:
    """An operation to its end."""
    async for _ in progress:
        pass


def _computed(instances: Iterable[Instance]) -> dict[int, int]:
    """Prompt tokens, those of requests prefilled again included, that these processes have begun to compute."""
    return {one.pid: one.work.asked_tokens - one.work.hit_tokens for one in instances if one.pid}


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# ---- beside the undisturbed


async def _undisturbed(address: str, witnesses: Sequence[Witness]) -> list[Witness]:
    """Each stream's request again, for as many tokens as it had."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(witness: Witness) -> Witness:
        async with free:
            again = Witness.begin(client, witness.asked, max(1, len(witness.tokens)), label="-again")
            await until(lambda: again.over, f"the end of {witness.asked.name}")
        return again

    async with AsyncClient(address) as client:
        return list(await asyncio.gather(*map(one, witnesses)))


def compare_all(found: Found, again: Sequence[Witness], folder: Path, say: Say) -> None:
    """Count the tokens that are not those of the undisturbed run, rounding ties apart."""
    reference: Reference | None = None
    for one, calm in zip(found.witnesses, again, strict=True):
        for error in filter(None, (one.error, calm.error)):
            say(f"{one.asked.name}: {error}")
        if not one.tokens or one.tokens == calm.tokens:
            continue
        reference = reference or Reference(folder)
        logits = reference.logits(one.asked.prompt, one.tokens)
        beside = compare(one.tokens, logits, TEMPERATURE, one.asked.seed)
        found.mismatched += beside.mismatched
        found.ties += max(beside.ties, int(not beside.mismatched))
        if beside.mismatched:
            say(f"{one.asked.name}: wrong from token {beside.tokens - beside.mismatched} on")


def report(plan: Plan, found: Found) -> Report:
    """Gaps by kind with least and greatest, tokens computed again, and what of the streams is wrong."""
    told: dict[str, tuple[float, str]] = {}
    spread: dict[str, tuple[float, float]] = {}
    for kind in plan.kinds:
        gaps = found.gaps_ms.get(kind)
        if not gaps:
            raise ValueError(f"no stream was struck by {kind}: more rounds are needed")
        for share, part in ((0.5, "p50"), (0.99, "p99")):
            told[f"gap_{part}_ms_{kind}"] = quantile(gaps, share), "ms"
            spread[f"gap_{part}_ms_{kind}"] = min(gaps), max(gaps)
        if kind in MOVING:
            steps = found.gap_steps[kind]
            for part, value in (
                ("p50", quantile(steps, 0.5)),
                ("p99", quantile(steps, 0.99)),
                ("max", max(steps)),
            ):
                told[f"gap_steps_{part}_{kind}"] = value, "steps"
                spread[f"gap_steps_{part}_{kind}"] = min(steps), max(steps)
        again = found.recomputed[kind]
        told[f"recomputed_tokens_{kind}"] = sum(again) / len(again), "tokens/request"
        spread[f"recomputed_tokens_{kind}"] = min(again), max(again)
        told[f"streams_{kind}"] = len(gaps), "streams"
    told["reprefill_p50_ms"] = quantile(found.reprefill_ms, 0.5), "ms"
    spread["reprefill_p50_ms"] = min(found.reprefill_ms), max(found.reprefill_ms)
    witnesses = found.witnesses
    told["streams"] = len(witnesses), "streams"
    told["failed"] = sum(bool(one.error) for one in witnesses), "streams"
    told["mismatched"], told["ties"] = (found.mismatched, "tokens"), (found.ties, "tokens")
    told["duplicated"] = sum(one.duplicated for one in witnesses), "tokens"
    told["missing"] = sum(one.missing for one in witnesses), "tokens"
    return Report.of(f"bench recovery --rounds {plan.rounds} --seed {plan.seed}", told, spread=spread)
