"""What work costs in seconds: steps by their shape, copies by their bytes. One model prices every policy's choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

NEAR = ("local", "nvlink")
"""Links between instances on one host, the first that is priced."""
FAR = ("gloo", "cross_node")
"""Links between hosts."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step's time depends on: sums over its sequences, so shapes of parts add up to the shape of the whole."""

    chunk_tokens: int = 0
    """Prompt tokens fed."""
    chunk_work: int = 0
    """Sum of chunk (chunk + 2 prefix): twice the pairs of a chunk's token with one that it sees."""
    decodes: int = 0
    """Sequences that decode, one token each."""
    context_tokens: int = 0
    """Sum of the contexts of those that decode."""

    @classmethod
    def of(cls, chunks: Iterable[tuple[int, int]] = (), contexts: Iterable[int] = ()) -> StepShape:
        """A step of `chunks`, each (tokens, tokens before them in the cache), and of decodes over `contexts`."""
        pairs, seen = list(chunks), list(contexts)
        return cls(
            sum(chunk for chunk, _ in pairs),
            sum(chunk * (chunk + 2 * prefix) for chunk, prefix in pairs),
            len(seen),
            sum(seen),
        )

    @property
    def tokens(self) -> int:
        """All tokens of the iteration: n."""
        return self.chunk_tokens + self.decodes

    def __add__(self, other: StepShape) -> StepShape:
        return StepShape(
            self.chunk_tokens + other.chunk_tokens,
            self.chunk_work + other.chunk_work,
            self.decodes + other.decodes,
            self.context_tokens + other.context_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Seconds of a step: a + b n + c sum(chunk (chunk + 2 prefix)) + d sum(context), the fields in that order."""

    base_s: float
    per_token_s: float
    per_chunk_work_s: float
    per_context_token_s: float

    def __post_init__(self) -> None:
        _require_not_negative(self)

    def predict(self, shape: StepShape) -> float:
        return (
            self.base_s
            + self.per_token_s * shape.tokens
            + self.per_chunk_work_s * shape.chunk_work
            + self.per_context_token_s * shape.context_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Two pieces: one for steps of fewer than `split_tokens` tokens, one from there on. It may jump at the split."""

    split_tokens: int
    below: Piece
    above: Piece

    def __post_init__(self) -> None:
        if self.split_tokens < 1:
            raise ValueError(f"split_tokens must be at least 1, got {self.split_tokens}")

    def piece(self, tokens: int) -> Piece:
        return self.below if tokens < self.split_tokens else self.above


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step, whose law depends on whether any prompt is in it.

    Fits that know one law for both name it twice. One that was made of pure prefills prices a mixed step with its own
    rate per token and whatever `per_context_token_s` it was given.
    """

    prefill: Law
    """Of steps with prompt tokens, mixed ones too."""
    decode: Law
    """Of steps that only decode."""

    def predict(self, shape: StepShape) -> float:
        """Seconds; a step without tokens takes none."""
        if not shape.tokens:
            return 0.0
        return self.law(shape).piece(shape.tokens).predict(shape)

    def law(self, shape: StepShape) -> Law:
        return self.prefill if shape.chunk_tokens else self.decode


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """Seconds of a copy: latency + bytes / bandwidth."""

    latency_s: float
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        _require_not_negative(self)
        if self.bandwidth_bytes_per_s == 0:
            raise ValueError("bandwidth_bytes_per_s must be above 0, got 0")

    def predict(self, size_bytes: float) -> float:
        return self.latency_s + size_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Prices of one kind of instance: one model under one parallelism on one machine."""

    step: StepCost
    kv_bytes_per_token: int
    """Keys and values of one token in all layers, over all GPUs of the instance."""
    capacity_tokens: int
    """Tokens whose KV an instance holds."""
    links: Mapping[str, LinkCost] = field(default_factory=dict)
    """Ways that KV travels, by name. `host` is the way to and from host memory, which a swap takes."""

    def __post_init__(self) -> None:
        for name in ("kv_bytes_per_token", "capacity_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def prices_swaps(self) -> bool:
        """Whether the way to host memory is known."""
        return "host" in self.links

    def link(self, name: str) -> LinkCost:
        if name not in self.links:
            raise ValueError(
                f"no link {name!r} in the cost model; there are {', '.join(self.links) or 'none'}"
            )
        return self.links[name]

    def copy_s(self, link: str, tokens: int) -> float:
        """Seconds to move the KV of `tokens` tokens over a link."""
        return self.link(link).predict(tokens * self.kv_bytes_per_token)

    def between_s(self, source: str, destination: str, tokens: int) -> float:
        """Seconds to move the KV of `tokens` tokens between instances at two addresses; 0 where no way is priced."""
        near = source.rpartition(":")[0] == destination.rpartition(":")[0]
        ways = (*NEAR, *FAR) if near else (*FAR, *NEAR)
        link = next((self.links[name] for name in ways if name in self.links), None)
        return link.predict(tokens * self.kv_bytes_per_token) if link else 0.0

    def swap_s(self, tokens: int) -> float:
        """Seconds to move the KV of `tokens` tokens to host memory, or back."""
        return self.copy_s("host", tokens)


def _require_not_negative(values: Piece | LinkCost) -> None:
    for entry in fields(values):
        value = getattr(values, entry.name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{entry.name} must be a number of at least 0, got {value!r}")
