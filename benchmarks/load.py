"""An open-loop load: sends the requests of a workload to a live cluster when each is due, however slow the answers.

Every request has a task of its own that sleeps until its time; nothing waits for an answer but the later turns of a
conversation, which are due their `gap_s` after the turn before has ended. What the generator itself delays is told by
each outcome's `late_s`. Run it in a process, or at least an event loop, that does little else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import grpc

from ..client import AsyncClient, Delta, Finished, PenstockError
from ..cluster import workload
from ..cluster.workload import Request, Workload
from .gaps import Arrival
from .outcomes import Outcome

LIMIT_S = 120.0
"""Of one request."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request, ready to be sent: drawing a long prompt takes milliseconds, in which others would be late."""

    request: Request
    prompt: list[int]


class Load:
    """Plays workloads against one cluster; to be made inside the event loop that plays them."""

    def __init__(
        self,
        client: AsyncClient,
        vocabulary: int,
        limit_s: float = LIMIT_S,
        ended: Callable[[Outcome], None] = lambda outcome: None,
    ):
        """`ended` hears of each request at its end."""
        self._client = client
        self._vocabulary = vocabulary
        self._limit_s = limit_s
        self._ended = ended
        self._began = 0.0

    async def play(self, load: Workload, seed: int = 0) -> list[Outcome]:
        """Send them all, and return once each has ended, in order of arrival. `seed` draws the prompts."""
        jobs = [_Job(one, self._prompt(one, number, seed)) for number, one in enumerate(load.requests)]
        self._began = time.perf_counter()
        chains = await asyncio.gather(*map(self._follow, _chains(jobs)))
        outcomes = [outcome for chain in chains for outcome in chain]
        return sorted(outcomes, key=lambda outcome: outcome.due_s)

    def _prompt(self, request: Request, number: int, seed: int) -> list[int]:
        return workload.token_ids(request, self._vocabulary, seed, own=str(number))

    @property
    def _now_s(self) -> float:
        return time.perf_counter() - self._began

    async def _follow(self, jobs: Sequence[_Job]) -> list[Outcome]:
        """One conversation, or a request that stands alone."""
        outcomes: list[Outcome] = []
        for job in jobs:
            due_s = outcomes[-1].ended_s + job.request.gap_s if outcomes else job.request.arrival_s
            await asyncio.sleep(due_s - self._now_s)
            outcomes.append(await self._send(job, Outcome(job.request, due_s)))
            self._ended(outcomes[-1])
        return outcomes

    async def _send(self, job: _Job, outcome: Outcome) -> Outcome:
        outcome.sent_s = self._now_s
        asked = self._client.generate(job.prompt, timeout_s=self._limit_s, **_options(job.request))
        try:
            async with aclosing(asked) as events:
                async for event in events:
                    match event:
                        case Delta(first_index=first, token_ids=ids, instance=maker) if ids:
                            outcome.arrivals.append(Arrival(self._now_s, first, len(ids), maker))
                        case Finished(reason=reason):
                            outcome.finish = reason
        except PenstockError as error:
            outcome.error, outcome.message, outcome.retry_s = error.code, error.message, error.retry_s
        outcome.ended_s = self._now_s
        return outcome


def _options(request: Request) -> Any:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": request.output_tokens, "ignore_eos": True}
    options |= {"tenant": request.tenant, "application": request.application}
    if request.priority != "normal":
        options["priority"] = request.priority
    return options


def _chains(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """The jobs of each session together, in their order."""
    chains: dict[object, list[_Job]] = {}
    for number, job in enumerate(jobs):
        chains.setdefault(job.request.session or number, []).append(job)
    return list(chains.values())


def fitting(load: Workload, context_tokens: int) -> Workload:
    """Without the requests that are longer than the model's context."""
    fits = [one for one in load.requests if one.prompt_tokens + one.output_tokens <= context_tokens]
    return replace(load, requests=tuple(fits))


def at_rate(load: Workload, per_s: float, seconds: float) -> Workload:
    """As many of its first requests as that rate brings in that time, in their own rhythm and at that mean rate."""
    begun = workload.first(load, max(1, round(per_s * seconds)))
    return workload.scale_rate(begun, per_s / begun.rate_per_s) if begun.rate_per_s else begun


def told(outcomes: Sequence[Outcome]) -> str:
    """What went wrong, as one line; empty where nothing did."""
    errors: dict[grpc.StatusCode, list[str]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            errors.setdefault(outcome.error, []).append(outcome.message)
    return "; ".join(f"{len(said)} x {code.name}: {said[0]}" for code, said in errors.items())
