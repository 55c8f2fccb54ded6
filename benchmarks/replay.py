"""A workload replayed against a live cluster: what its clients felt, and whether the generator kept up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..client import AsyncClient
from ..cluster import traces, workload
from ..cluster.config import Config
from ..cluster.workload import Workload
from ..policy.fairness import Slo
from . import slices
from .figures import Report, progress
from .load import Load, at_rate, fitting, told
from .outcomes import LATE_S, Outcome, attainment, latencies, lateness

logger = logging.getLogger(__name__)

SLICES = {"azure": slices.azure_conversation, "mooncake": slices.mooncake_conversation}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send. `workload` names a trace that lies in `data/`, or a file of any form that `traces` reads."""

    workload: str
    rate_per_s: float
    seconds: float
    slo: Slo
    scale_prompt: float = 1.0
    scale_output: float = 1.0
    seed: int = 0

    @property
    def command(self) -> str:
        words = [f"bench load --workload {self.workload} --rate {self.rate_per_s:g}"]
        words.append(f"--seconds {self.seconds:g}")
        for name in ("scale_prompt", "scale_output"):
            if getattr(self, name) != 1.0:
                words.append(f"--{name.replace('_', '-')} {getattr(self, name):g}")
        return " ".join(words)

    def requests(self) -> Workload:
        known = SLICES.get(self.workload)
        load = known() if known else traces.read(self.workload, seed=self.seed)
        scaled = workload.scale_lengths(load, self.scale_prompt, self.scale_output)
        return at_rate(scaled, self.rate_per_s, self.seconds)


def measure(
    plan: Plan, address: str | None, config: Config, say: Callable[[str], None] = logger.info
) -> Report:
    """Play it against the cluster at `address`; without one against a cluster of `config`, started for it."""
    load = plan.requests()
    with _cluster(address, config, say) as where:
        outcomes, too_long = asyncio.run(_play(plan, load, where))
    if trouble := told(outcomes):
        say(trouble)
    return report(plan, outcomes, too_long, say)


@contextmanager
def _cluster(address: str | None, config: Config, say: Callable[[str], None]):
    if address is not None:
        yield address
        return
    from ..cluster.launcher import (
        Cluster,
    )  # Ray takes a second to import, and a cluster that runs needs none of it

    with Cluster.start(replace(config, router=replace(config.router, port=0)), progress=say) as cluster:
        yield cluster.address


async def _play(plan: Plan, load: Workload, address: str) -> tuple[list[Outcome], int]:
    """Outcomes, and how many requests were too long for the model."""
    async with AsyncClient(address) as client:
        (model, *_) = await client.models()
        fits = fitting(load, model.context_tokens)
        with progress("requests", len(fits)) as advance:
            played = Load(client, model.vocabulary, ended=lambda outcome: advance(1))
            outcomes = await played.play(fits, plan.seed)
    return outcomes, len(load) - len(fits)


def report(
    plan: Plan, outcomes: Sequence[Outcome], too_long: int, say: Callable[[str], None] = logger.info
) -> Report:
    """Counts, latencies and attainment of all that were sent. `ValueError` where that was none."""
    if not outcomes:
        raise ValueError("no request of the workload is short enough for the model")
    lasted_s = max(outcome.ended_s for outcome in outcomes)
    found: dict[str, tuple[float, str]] = {
        "requests": (len(outcomes), "requests"),
        "done": (sum(outcome.done for outcome in outcomes), "requests"),
        "refused": (sum(outcome.refused for outcome in outcomes), "requests"),
        "failed": (sum(not outcome.done and not outcome.refused for outcome in outcomes), "requests"),
        "too_long": (too_long, "requests"),
        "lasted_s": (lasted_s, "s"),
        "output_tokens_per_s": (sum(outcome.tokens for outcome in outcomes) / lasted_s, "tokens/s"),
        **latencies(outcomes),
        "attainment": (attainment(outcomes, plan.slo), "1"),
        "slo_ttft_s": (plan.slo.ttft_s, "s"),
        "slo_tpot_s": (plan.slo.tpot_s, "s"),
        **lateness(outcomes),
    }
    if behind := found["fell_behind"][0]:
        say(f"the generator fell behind: {behind:g} requests were sent more than {LATE_S:g} s late")
    return Report.of(plan.command, found)
