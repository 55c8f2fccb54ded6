"""Whether a live cluster gives the tokens of `transformers`, each once, while its requests move, and loses no block.

For each checkpoint and transport a cluster is started, its share of the trials run against it, its blocks counted,
and the cluster stopped. The tokens are compared afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..client import AsyncClient
from ..client.cluster import Instance
from ..cluster.config import Config, default
from ..cluster.controller import INSTANCE
from ..cluster.launcher import ROUTER, Cluster
from ..engine.checkpoint import read_checkpoint
from ..engine.config import EMBEDDED
from ..engine.runner import choose_device
from ..handover.values import SamplingParams
from ..proto.inference_pb2 import FINISH_REASON_STOP
from .checkpoints import VARIANTS, make_checkpoint
from .compare import compare_shaped, wrong_logprobs
from .exercise import Stream, exercise
from .figures import Report, progress
from .held import Text
from .plain import Asked
from .reference import Reference
from .trials import MOVED_WITHIN, OUTPUT_TOKENS, draw_trials

logger = logging.getLogger(__name__)

RANDOM = "random"
SAMPLED_SHARE = {EMBEDDED: 0.9, RANDOM: 0.0}
"""Of each checkpoint's requests. Greedy outputs of a small trained model run in circles, and notice little damage."""
FOREIGN_SAMPLED_SHARE = 0.5
CHECKPOINTS = (EMBEDDED, RANDOM)
TRANSPORTS = ("local", "gloo")
RANKS = ((1, 1), (2, 1), (1, 2), (2, 2))
AT_ONCE = 12
"""Requests that run at a time."""
LEAST_MOVED = 0.8
MOST_TIES = 1e-4
"""Of all tokens; a single tie is none too many however few they are."""
MOST_RECOVERED = 0.05
"""Of the requests. A busy machine may silence an instance for a moment, but recovery must not hide lost handovers."""
LEAST_SENSITIVITY = 0.9
"""Of the streams in which a block was damaged; a single one that does not notice is none too many."""
UNITS = {
    "requests": "requests",
    "tokens": "tokens",
    "ties": "tokens",
    "mismatched": "tokens",
    "logprobs": "log-probabilities",
    "logprobs_wrong": "log-probabilities",
    "held": "outputs",
    "held_broken": "outputs",
    "duplicated": "tokens",
    "missing": "tokens",
    "leaked_blocks": "blocks",
    "astray_blocks": "blocks",
    "moves_done": "moves",
    "moves_aborted": "moves",
    "cancelled": "requests",
    "recoveries": "recoveries",
    "restarts": "instances",
    "damaged": "streams",
    "sensitivity": "1",
}

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What to verify. `instance` and `router` name the classes that run, as `Cluster.start` takes them."""

    requests: int
    moves: int
    seed: int
    model: str | None = None
    """A checkpoint's folder, in the place of our own `checkpoints`."""
    checkpoints: Sequence[str] = CHECKPOINTS
    transports: Sequence[str] = TRANSPORTS
    ranks: Sequence[tuple[int, int]] = RANKS
    """Tensor parallelism of the prefill and of the decode pool, drawn for each cluster of what the model divides by."""
    config: Config = default()
    instance: str = INSTANCE
    router: str = ROUTER

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"at least 1 request is needed, got {self.requests}")
        if self.moves < 0:
            raise ValueError(f"a request cannot be moved {self.moves} times")
        if self.config.cluster.decode < 2:
            raise ValueError("moves need at least 2 decode instances")

    @property
    def command(self) -> str:
        words = [f"verify --requests {self.requests} --moves {self.moves} --seed {self.seed}"]
        if self.model:
            words.append(f"--model {self.model}")
        elif len(self.checkpoints) == 1:
            words.append(f"--checkpoint {self.checkpoints[0]}")
        if len(self.transports) == 1:
            words.append(f"--transport {self.transports[0]}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and in a sentence each what of it may not be."""

    report: Report
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trip:
    """One cluster's part of the whole."""

    folder: Path
    transport: str
    requests: int
    seed: int
    sampled_share: float
    ranks: tuple[int, int]
    """Tensor parallelism of the prefill and of the decode pool."""

    def __str__(self) -> str:
        prefill, decode = self.ranks
        where = f"{self.folder.name} checkpoint, transport {self.transport}"
        return f"{self.requests} requests: {where}, tensor parallelism {prefill} to {decode}"

    def config(self, config: Config) -> Config:
        """What its cluster runs under."""
        prefill, decode = self.ranks
        return replace(
            config,
            engine=replace(config.engine, model=str(self.folder), transport=self.transport),
            router=replace(config.router, port=0),
            cluster=replace(config.cluster, prefill_tensor_parallel=prefill, decode_tensor_parallel=decode),
        )


def verify(asked: Verification, say: Say = logger.info) -> Verdict:
    """Run it all; `say` hears what begins. `ValueError` for a checkpoint that cannot be served."""
    counts: Counter[str] = Counter(dict.fromkeys(UNITS, 0))
    streams: dict[Path, list[Stream]] = {}
    with _folders(asked) as folders:
        for trip in _trips(asked, folders):
            say(str(trip))
            ran, after = _travel(asked, trip, say)
            for trouble, times in Counter(trouble for stream in ran for trouble in stream.troubles).items():
                say(f"{times} x {trouble}")
            streams.setdefault(trip.folder, []).extend(ran)
            counts.update(leaked_blocks=sum(map(_kept, after)), restarts=sum(i.restarts for i in after))
            counts.update(astray_blocks=_astray(trip, after))
        for ran in streams.values():
            counts.update(_arrivals(ran))
        say("comparing with transformers")
        changed = [
            change
            for folder, ran in streams.items()
            for change in _beside_reference(folder, ran, counts, say)
        ]
    share = sum(changed) / len(changed) if changed else 0.0
    figures = {**counts, "damaged": len(changed), "sensitivity": share}
    return Verdict(
        Report(command=asked.command, figures=figures, units=UNITS),
        tuple(failures(figures, ours=asked.model is None)),
    )


def failures(figures: dict[str, float], ours: bool) -> Iterator[str]:
    """What the figures show to be wrong; `ours`: the checkpoints are our own, which notice damage."""
    for name in ("mismatched", "logprobs_wrong", "held_broken", "duplicated", "missing", "leaked_blocks"):
        if figures[name]:
            yield f"{name} is {figures[name]:g} and must be 0"
    drawn = figures["moves_done"] + figures["moves_aborted"]
    if figures["moves_done"] < LEAST_MOVED * drawn:
        yield f"only {figures['moves_done']:g} of {drawn:g} moves were done"
    if figures["astray_blocks"]:
        yield f"{figures['astray_blocks']:g} blocks took another transport than the one asked for"
    if figures["restarts"]:
        yield f"{figures['restarts']:g} instances were started anew, though nothing ended them"
    if figures["recoveries"] > max(1, MOST_RECOVERED * figures["requests"]):
        yield f"{figures['recoveries']:g} recoveries in {figures['requests']:g} requests, though nothing failed"
    if figures["ties"] > max(1, MOST_TIES * figures["tokens"]):
        yield f"{figures['ties']:g} ties in {figures['tokens']:g} tokens are a defect"
    unnoticed = figures["damaged"] * (1 - figures["sensitivity"])
    if ours and unnoticed > max(1.5, figures["damaged"] * (1 - LEAST_SENSITIVITY)):
        yield f"only {figures['sensitivity']:.0%} of the streams would show a damaged KV block"


# ---- the clusters


@contextmanager
def _folders(asked: Verification) -> Iterator[dict[Path, float]]:
    """The checkpoints with the share of requests that sample; the random one written for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="penstock-verify-") as scratch:
        if asked.model is not None:
            yield {replace(asked.config.engine, model=asked.model).folder: FOREIGN_SAMPLED_SHARE}
            return
        family, fields = VARIANTS[asked.seed % len(VARIANTS)]
        made = {
            EMBEDDED: lambda: replace(asked.config.engine, model=EMBEDDED).folder,
            RANDOM: lambda: make_checkpoint(Path(scratch) / f"random-{family}", family, asked.seed, **fields),
        }
        yield {made[name](): SAMPLED_SHARE[name] for name in asked.checkpoints}


def _trips(asked: Verification, folders: Mapping[Path, float]) -> Iterator[Trip]:
    """The requests shared among every checkpoint and transport; one that gets none is left out."""
    pairs = [(folder, transport) for folder in folders for transport in asked.transports]
    for number, (folder, transport) in enumerate(pairs):
        requests = (asked.requests + len(pairs) - 1 - number) // len(pairs)
        ranks = _divisions(folder, asked)
        if requests:
            seed, divided = asked.seed * len(pairs) + number, ranks[(asked.seed + number) % len(ranks)]
            yield Trip(folder, transport, requests, seed, folders[folder], divided)


def _divisions(folder: Path, asked: Verification) -> list[tuple[int, int]]:
    """Of `ranks` those that can serve this model: KV of several ranks moves between CPUs alone."""
    spec, one_only = read_checkpoint(folder), choose_device(asked.config.engine).type != "cpu"

    def serves(ranks: int) -> bool:
        try:
            spec.share(ranks)
        except ValueError:
            return False
        return ranks == 1 or not one_only

    return [pair for pair in asked.ranks if all(map(serves, pair))] or [(1, 1)]


def _travel(asked: Verification, trip: Trip, say: Say) -> tuple[list[Stream], tuple[Instance, ...]]:
    """Start a cluster, run the trials, and stop it; the instances are as they were once all was given back."""
    config = trip.config(asked.config)
    with Cluster.start(config, progress=say, instance=asked.instance, router=asked.router) as cluster:
        trials = draw_trials(
            trip.requests,
            asked.moves,
            trip.seed,
            vocabulary=cluster.model.vocabulary,
            context_tokens=cluster.model.context_tokens,
            sampled_share=trip.sampled_share,
            text=cluster.model.tokenizer is not None,
        )
        decoders = [instance.name for instance in cluster.instances() if instance.role.decode_slots]
        with progress("requests", len(trials)) as advance:
            ran = asyncio.run(exercise(cluster.address, trials, decoders, AT_ONCE, lambda: advance(1)))
        return ran, asyncio.run(_settled(cluster.address, config))


async def _settled(address: str, config: Config) -> tuple[Instance, ...]:
    """The instances as soon as they hold no block, at the latest once every lease and grace time has passed."""
    handover = config.handover
    async with AsyncClient(address) as client:
        try:
            async with asyncio.timeout(handover.lease_s + handover.grace_s):
                while True:
                    await asyncio.sleep(3 * handover.heartbeat_s)  # so that each pool has spoken since
                    instances = (await client.cluster()).instances
                    if not any(map(_kept, instances)):
                        return instances
        except TimeoutError:
            return (await client.cluster()).instances


def _kept(instance: Instance) -> int:
    """Blocks that are neither free nor cached; one at least of an instance that does not say."""
    blocks = instance.blocks
    return blocks.total - blocks.free - blocks.cached if blocks.total else 1


def _astray(trip: Trip, instances: Sequence[Instance]) -> int:
    """Blocks that travelled otherwise than the transport that was asked for."""
    written = sum(instance.work.written_blocks for instance in instances)
    sent = sum(instance.work.sent_blocks for instance in instances)
    return {"local": sent, "gloo": written}.get(trip.transport, 0)


# ---- what came of it


def _arrivals(streams: Sequence[Stream]) -> Counter[str]:
    """What the streams show by themselves."""
    return Counter(
        requests=sum(stream.choice == 0 for stream in streams),
        tokens=sum(len(stream.tokens) for stream in streams),
        duplicated=sum(stream.duplicated for stream in streams),
        missing=sum(stream.missing for stream in streams),
        moves_done=sum(stream.moves_done for stream in streams),
        moves_aborted=sum(stream.moves_aborted for stream in streams),
        cancelled=sum(stream.cancelled for stream in streams if stream.choice == 0),
        recoveries=sum(stream.recoveries for stream in streams),
    )


def _beside_reference(
    folder: Path, streams: Sequence[Stream], counts: Counter[str], say: Say
) -> Iterator[bool]:
    """Count what is wrong; for each long stream that no parameter narrows, whether a damaged block would change it."""
    reference = Reference(folder)
    spec = read_checkpoint(folder)
    text = Text(folder, spec.vocab, spec.eos) if (folder / "tokenizer.json").exists() else None
    with progress("comparing", len(streams)) as advance:
        for stream in streams:
            trial, tokens = stream.trial, stream.tokens
            if tokens:
                logits = reference.logits(trial.prompt, tokens)
                asked = _asked(stream, text, spec.eos)
                found = compare_shaped(tokens, logits, asked)
                counts.update(ties=found.ties, mismatched=found.mismatched)
                counts.update(_logprobs(stream, reference, logits))
                counts.update(_held(stream, text))
                if found.mismatched:
                    right = found.tokens - found.mismatched
                    which = f"{trial.request_id}, choice {stream.choice}"
                    say(f"{which}: wrong from token {right} of {found.tokens} on; {trial.shape}")
            if len(tokens) >= OUTPUT_TOKENS[0] and trial.shape == SamplingParams() and trial.held is None:
                yield _notices_damage(reference, stream)
            advance(1)


def _logprobs(stream: Stream, reference: Reference, logits: torch.Tensor) -> Counter[str]:
    """How many log-probabilities were told where they were asked for, and how many of them are not the reference's."""
    found, shape, prompt = Counter[str](), stream.trial.shape, stream.trial.prompt
    if shape.logprobs is not None:
        wrong = wrong_logprobs(stream.logprobs, stream.tokens, logits, shape.logprobs)
        found.update(logprobs=len(stream.logprobs), logprobs_wrong=wrong)
    if shape.prompt_logprobs is not None and stream.choice == 0:
        rows = reference.logits(prompt[:1], prompt[1:]) if len(prompt) > 1 else logits[:0]
        told = [one for again in stream.prompts for one in again]
        wrong = wrong_logprobs(told, prompt[1:], rows, shape.prompt_logprobs)
        found.update(logprobs=len(told), logprobs_wrong=wrong)
    return found


def _notices_damage(reference: Reference, stream: Stream) -> bool:
    trial, tokens = stream.trial, stream.tokens
    draw = random.Random(trial.seed)
    at = draw.randrange(1, max(2, int(MOVED_WITHIN * len(tokens))))
    logits = reference.damaged_logits(trial.prompt, tokens, at, draw.getrandbits(32))
    return compare_shaped(tokens, logits, Asked(trial.params(stream.choice), trial.prompt), at).mismatched > 0


def _asked(stream: Stream, text: Text | None, ends: frozenset[int]) -> Asked:
    trial, masks = stream.trial, None
    if trial.held is not None and text is not None:
        masks = text.masks(trial.held, stream.tokens)
    return Asked(trial.params(stream.choice), trial.prompt, ends, masks)


def _held(stream: Stream, text: Text | None) -> Counter[str]:
    """Outputs that ended as their constraint let them, and those of them that do not satisfy it."""
    held = stream.trial.held
    if held is None or text is None or stream.end != FINISH_REASON_STOP:
        return Counter()
    return Counter(held=1, held_broken=not text.satisfies(held, stream.tokens))
