"""What is to be verified, and the clusters that it is drawn into: a checkpoint, a transport and sizes for each."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..cluster.config import Config, default
from ..cluster.controller import INSTANCE
from ..cluster.launcher import ROUTER
from ..cluster.profile import load
from ..engine.checkpoint import read_checkpoint
from ..engine.config import EMBEDDED
from ..engine.runner import choose_device
from .checkpoints import VARIANTS, make_checkpoint

RANDOM = "random"
SAMPLED_SHARE = {EMBEDDED: 0.9, RANDOM: 0.0}
"""Of each checkpoint's requests. Greedy outputs of a small trained model run in circles, and notice little damage."""
FOREIGN_SAMPLED_SHARE = 0.5
CHECKPOINTS = (EMBEDDED, RANDOM)
TRANSPORTS = ("local", "gloo")
RANKS = ((1, 1), (2, 1), (1, 2), (2, 2))
AMPLE, TINY = "ample", "tiny"
CACHES = (AMPLE, TINY)
CHUNKS = ((16, 48), (49, 128), (129, 256), (257, 512))
"""Prompt tokens of a step, drawn from each of these in turn."""
PROFILE = "llama-2-7b-a100-tp1"
ITL_TARGETS_S = (0.012, 0.016, 0.025)
"""From what a step with a few decodes costs by `PROFILE` on. What steps take here is of no matter."""
TINY_BLOCKS = (32, 48)
"""Of a tiny cache. It bounds the context, so outputs make up most of a sequence: it comes in small, and grows."""
HOST_SHARE = (0.4, 0.7)
"""Of a tiny cache, in host memory: a sequence longer than that is not kept there, but computed again."""


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
    caches: Sequence[str] = CACHES
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """One cluster's part of the whole."""

    folder: Path
    transport: str
    requests: int
    seed: int
    sampled_share: float
    ranks: tuple[int, int]
    """Tensor parallelism of the prefill and of the decode pool."""
    prefill_tokens: int
    itl_target_s: float = 0.0
    """Steps are cut for it by `PROFILE`; 0 is no limit."""
    blocks: int = 0
    """KV blocks of an instance where its cache is tiny."""
    host_blocks: int = 0
    """The same in host memory."""

    def __str__(self) -> str:
        prefill, decode = self.ranks
        chunk = f"chunks of {self.prefill_tokens}"
        chunk += f" within {1000 * self.itl_target_s:g} ms" if self.itl_target_s else ""
        cache = f", {self.blocks} KV blocks and {self.host_blocks} in host memory" if self.tiny else ""
        where = f"{self.folder.name} checkpoint, transport {self.transport}"
        return f"{self.requests} requests: {where}, tensor parallelism {prefill} to {decode}, {chunk}{cache}"

    @property
    def tiny(self) -> bool:
        """Sequences have to give their memory back."""
        return self.blocks > 0

    def config(self, config: Config) -> Config:
        """What its cluster runs under."""
        prefill, decode = self.ranks
        engine = replace(config.engine, model=str(self.folder), transport=self.transport)
        cluster = replace(
            config.cluster,
            prefill_tensor_parallel=prefill,
            decode_tensor_parallel=decode,
            prefill_tokens=self.prefill_tokens,
        )
        cost = config.cost
        if self.itl_target_s:
            cluster, cost = replace(cluster, itl_target_s=self.itl_target_s), load(PROFILE).cost
        if self.tiny:
            block_bytes = read_checkpoint(self.folder).block_bytes(
                engine.block_size, "float32", max(self.ranks)
            )
            engine = replace(
                engine,
                kv_blocks=self.blocks,
                host_kv_bytes=self.host_blocks * block_bytes,
                admission="aggressive",
            )
        router = replace(config.router, port=0)
        return replace(config, engine=engine, router=router, cluster=cluster, cost=cost)


@contextmanager
def folders(asked: Verification) -> Iterator[dict[Path, float]]:
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


def draw_trips(asked: Verification, folders: Mapping[Path, float]) -> Iterator[Trip]:
    """The requests shared among clusters: one for every checkpoint and transport, and one more for every checkpoint,
    whose cache is tiny. A cluster that gets none is left out.
    """
    ample = [(folder, transport, False) for folder in folders for transport in asked.transports]
    turns = [asked.transports[(asked.seed + i) % len(asked.transports)] for i in range(len(folders))]
    tiny = [(folder, transport, True) for folder, transport in zip(folders, turns, strict=True)]
    clusters = ample * (AMPLE in asked.caches) + tiny * (TINY in asked.caches)
    for number, (folder, transport, is_tiny) in enumerate(clusters):
        requests = (asked.requests + len(clusters) - 1 - number) // len(clusters)
        if requests:
            ranks, turn = _divisions(folder, asked), asked.seed + number
            trip = Trip(
                folder=folder,
                transport=transport,
                requests=requests,
                seed=asked.seed * len(clusters) + number,
                sampled_share=folders[folder],
                ranks=ranks[turn % len(ranks)],
                prefill_tokens=0,
            )
            yield _sized(trip, turn, is_tiny)


def _sized(trip: Trip, turn: int, tiny: bool) -> Trip:
    """With a drawn chunk, and either a tiny cache or, in every other turn, a target for steps."""
    draw = random.Random(trip.seed)
    trip = replace(trip, prefill_tokens=draw.randint(*CHUNKS[turn % len(CHUNKS)]))
    if not tiny:
        return replace(trip, itl_target_s=draw.choice(ITL_TARGETS_S)) if turn % 2 else trip
    blocks = draw.randint(*TINY_BLOCKS)
    return replace(trip, blocks=blocks, host_blocks=int(blocks * draw.uniform(*HOST_SHARE)))


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
