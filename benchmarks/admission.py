"""Three rules of admission beside each other: how often memory has to be taken back, and what is served meanwhile.

Requests with the lengths of the Azure conversation trace, scaled down, wait at one instance of the embedded checkpoint
whose cache holds 60 % of what its decode slots would take if all were used. No client says how long its answer will
be: each asks for the most that the trace has seen. The rules take turns of some steps within one run. Seconds are
processor time of the thread that does all the work, so that other work on the machine does not decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..cluster.traces import read_azure
from ..cluster.workload import Request, first, scale_lengths, token_ids
from ..decode_worker.phase import DecodePhase
from ..engine.blocks import BlockPool
from ..engine.config import EngineConfig
from ..engine.runner import Runner
from ..engine.scheduler import Scheduler
from ..engine.sequence import Sequence as Running
from ..engine.step import StepItem
from ..handover.values import Context, Epoch, SamplingParams
from ..policy.admission import RULES
from ..policy.batching import Budget
from ..policy.state import blocks_for
from ..prefill_worker.phase import PrefillPhase
from .figures import Report, progress

TRACE = Path(__file__).parent / "data" / "azure_conv_2023.csv"
REQUESTS = 500
PROMPT_SCALE, OUTPUT_SCALE = 1 / 8, 1 / 4
LONGEST_OUTPUT = 1000
"""Of the whole trace, in its own tokens."""
ROLE = Budget(512, 64)
SHARE = 0.6
"""Of the demand that memory holds."""
TURN = 20
"""Steps of one rule before the next one's turn."""


class Model(Protocol):
    def step(self, items: Sequence[StepItem]) -> list[int | None]: ...


def measure(count: int = REQUESTS) -> Report:
    """Preemptions by requests, and output tokens by second of each rule's own processor time."""
    requests = read_requests(count)
    blocks = memory_blocks(requests, EngineConfig().block_size)
    runners = {rule: Runner(EngineConfig(kv_blocks=blocks, device="cpu")) for rule in RULES}
    spec = next(iter(runners.values())).spec
    with progress("requests", count * len(RULES)) as advance:
        trials = {rule: Trial(rule, requests, blocks, runner, spec.vocab) for rule, runner in runners.items()}
        take_turns(list(trials.values()), advance)
    figures = {f"preemptions_per_1000_{rule}": 1000 * one.preemptions / count for rule, one in trials.items()}
    figures |= {f"tokens_per_s_{rule}": one.tokens / one.seconds for rule, one in trials.items()}
    units = {key: "1" if key.startswith("preemptions") else "tokens/s" for key in figures}
    return Report(command="bench admission", figures=figures, units=units)


def read_requests(count: int) -> list[Request]:
    """The first requests of the trace, with shorter prompts and outputs."""
    return list(scale_lengths(first(read_azure(TRACE), count), PROMPT_SCALE, OUTPUT_SCALE).requests)


def memory_blocks(requests: Sequence[Request], block_size: int) -> int:
    """`SHARE` of the blocks that as many requests as there are slots hold at their ends, on average."""
    ends = [blocks_for(request.prompt_tokens + request.output_tokens, block_size) for request in requests]
    return int(SHARE * ROLE.decode_slots * sum(ends) / len(ends))


@dataclass
class Trial:
    """All requests under one rule."""

    rule: str
    requests: Sequence[Request]
    blocks: int
    model: Model
    vocabulary: int
    tokens: int = 0
    """Of outputs, each counted once."""
    seconds: float = 0.0
    steps: int = 0
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size, phases = EngineConfig().block_size, (PrefillPhase(), DecodePhase())
        self._scheduler = Scheduler(BlockPool(self.blocks), size, ROLE, *phases, "bench", rule=self.rule)
        self._wanted = {str(number): request.output_tokens for number, request in enumerate(self.requests)}
        most = round(LONGEST_OUTPUT * OUTPUT_SCALE)
        for number, request in enumerate(self.requests):
            prompt = tuple(token_ids(request, self.vocabulary, own=str(number)))
            context = Context(prompt, (), SamplingParams(max_tokens=most, ignore_eos=True))
            self._scheduler.add(Running.begin(str(number), Epoch(1, 1), context, 1 << 30))

    @property
    def preemptions(self) -> int:
        return self._scheduler.preemptions

    @property
    def left(self) -> int:
        """Requests that have not ended."""
        return len(self._wanted) - len(self.outputs)

    def step(self) -> None:
        began = time.thread_time()
        batch = self._scheduler.next_batch()
        self._scheduler.take_preempted()
        drawn = self.model.step([self._scheduler.item(sequence, tokens) for sequence, tokens in batch])
        for (sequence, tokens), token in zip(batch, drawn, strict=True):
            self._scheduler.ran(sequence, tokens)
            if token is not None:
                sequence.append(token)
                self._end_if_done(sequence)
        self.tokens += sum(token is not None for token in drawn)
        self.steps += 1
        self.seconds += time.thread_time() - began

    def _end_if_done(self, sequence: Running) -> None:
        if sequence.made == self._wanted[sequence.session]:
            self.outputs[sequence.session] = sequence.tokens[sequence.prompt :]
            self._scheduler.ended(sequence)
            self._scheduler.remove(sequence.key, 0.0)


def take_turns(trials: Sequence[Trial], advance: Callable[[int], None]) -> None:
    """Run them to their ends, some steps of each in turn."""
    for trial in _turns(trials):
        before = trial.left
        for _ in range(TURN):
            if trial.left:
                trial.step()
        advance(before - trial.left)


def _turns(trials: Sequence[Trial]) -> Iterator[Trial]:
    while any(trial.left for trial in trials):
        yield from (trial for trial in trials if trial.left)
