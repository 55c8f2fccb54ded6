"""Values of the handover protocol: who, under which epoch, and what they say to each other.

Everything here is frozen and compared by value, so that a message can be doubled, delayed or hashed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from ..policy.state import Priority

GRAMMAR_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 10_000,
    "step_max_items": 4_000,
}
"""What compiling a grammar and finding its next tokens may take, in llguidance's units; the same at every party."""

FOREVER = 2**31 - 1
"""The n of a bound that voids a whole attempt."""


class Epoch(NamedTuple):
    """A right to own a session. The client raises `attempt` at each resume, the router `n`; compared in that order."""

    attempt: int
    n: int


class Incarnation(NamedTuple):
    """One life of an instance."""

    instance: str
    life: int


class LeaseKey(NamedTuple):
    """Names a lease: an instance leases an epoch of a session at most once."""

    session: str
    epoch: Epoch


class End(IntEnum):
    """Why a sequence ended."""

    STOP = 1
    LENGTH = 2
    ASTRAY = 3
    """Its grammar could not be followed further within `GRAMMAR_LIMITS`: its last token counts for nothing."""


class MoveMode(IntEnum):
    """How a move copies: beside the running steps, or with the sequence paused throughout."""

    LIVE = 1
    BLOCKING = 2


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities at one place, before any parameter changes them."""

    own: float
    """Of the token that is there."""
    top: tuple[tuple[int, float], ...] = ()
    """Pairs (token, its log-probability) of the likeliest, in falling order."""


class TokenRecord(NamedTuple):
    """One generated token; `end` is set on the last one of a sequence."""

    id: int
    end: End | None = None
    logprobs: Logprobs | None = None
    """Where they were asked for."""
    prompt: tuple[Logprobs, ...] = ()
    """On the first token, where they were asked for: of the prompt from its second token on.

    They ride with a token, so that what brings each token exactly once does so with them.
    """


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one choice are drawn; the defaults of what shapes the logits change nothing.

    `temperature` 0 is greedy; otherwise the draw is keyed by (seed, choice, position).
    """

    temperature: float = 0.0
    seed: int = 0
    choice: int = 0
    max_tokens: int = 1
    ignore_eos: bool = False
    top_p: float = 1.0
    """Of the most likely tokens, the fewest that have this much probability together."""
    top_k: int = 0
    """Of the most likely tokens, so many; 0 means all."""
    min_p: float = 0.0
    """Tokens at least this likely, as a share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that was generated before."""
    frequency_penalty: float = 0.0
    """Taken from the logit of each token for every time that it was generated before."""
    repetition_penalty: float = 1.0
    """Divides a positive logit, and multiplies a negative one, of each token of the prompt and the output so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs (token, what is added to its logit), in order of tokens."""
    min_tokens: int = 0
    """No token may end the output before it has so many."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the output beside the model's own; `ignore_eos` is not about them."""
    logprobs: int | None = None
    """How many alternatives are told beside each token's log-probability; None tells neither."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: str = ""
    """What the output is held to, in llguidance's form; empty where it is free."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything of a sequence that grows: what was asked, and what was answered so far."""

    prompt: tuple[int, ...]
    emitted: tuple[int, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    salt: str = ""
    """The tenant: KV is shared only under equal salts."""
    application: str = ""
    cache_ttl_s: float = 0.0
    """How long the KV is to stay cached for a next turn."""
    priority: int = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Address:
    """An incarnation and where it listens (host:port)."""

    incarnation: Incarnation
    at: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of a block of KV; a destination refuses what differs from its own."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int


@dataclass(frozen=True, slots=True)
class Window:
    """Where another process on the same host finds an instance's KV memory."""

    host: str
    pid: int
    fd: int
    size_bytes: int
    blocks: int
    name: str = ""
    ranks: int = 1
    """The caches of so many ranks lie in it one after the other."""


# ---- router to instance


@dataclass(frozen=True, slots=True)
class Start:
    """Prefill `context` and own the session under `epoch`; hand it over to `destination` where one is named."""

    session: str
    epoch: Epoch
    context: Context
    destination: Address | None = None
    next_epoch: Epoch | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Hand the session over to `destination`, which will own it under `next_epoch`."""

    session: str
    epoch: Epoch
    next_epoch: Epoch
    destination: Address
    mode: MoveMode = MoveMode.LIVE


@dataclass(frozen=True, slots=True)
class Resume:
    """The commit sent under `asked` never took effect: run on under `epoch`."""

    session: str
    asked: Epoch
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Revoke:
    """Every epoch of the session up to `bound` is void."""

    session: str
    bound: Epoch


@dataclass(frozen=True, slots=True)
class Seen:
    """The router expects `next_index` next; what lies before it need not be told again."""

    session: str
    attempt: int
    next_index: int


# ---- instance to router


@dataclass(frozen=True, slots=True)
class News:
    """What one step brought for one session; without records: it lives (it waits or prefills)."""

    session: str
    epoch: Epoch
    first_index: int
    records: tuple[TokenRecord, ...] = ()
    waits: bool = False
    """No step was launched with it: it has no KV there."""
    refused: str = ""
    """Why the instance can never begin it; empty otherwise."""


@dataclass(frozen=True, slots=True)
class Unmoved:
    """The move to `next_epoch` will not happen; the source owns on under `epoch`."""

    session: str
    epoch: Epoch
    next_epoch: Epoch
    reason: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A commit sent under `epoch` has not been acknowledged: who owns the session?"""

    session: str
    epoch: Epoch


# ---- instance to instance; all name both incarnations, since a restart forgets


@dataclass(frozen=True, slots=True)
class Reserve:
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    fingerprint: str
    layout: Layout
    blocks: int
    context: Context
    router: str
    one_sided: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """`have` leading blocks are at the destination already, or behind the window of all tokens to come.

    `block_ids`, of the others, and `window` are for a one-sided writer.
    """

    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    lease_s: float
    have: int = 0
    block_ids: tuple[int, ...] = ()
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """No room yet; the reservation stays open."""

    lease: LeaseKey
    source: Incarnation
    destination: Incarnation


@dataclass(frozen=True, slots=True)
class Refuse:
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Token records from the router's acknowledged index on, and how many tokens' KV was copied in all."""

    first_index: int
    records: tuple[TokenRecord, ...]
    computed: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Header of a message of blocks, `count` of them from position `first` of the block table; the last has the commit.

    Two-sided transports: before the blocks. One-sided: after they were written.
    """

    lease: LeaseKey
    source: Incarnation
    destination: Incarnation
    first: int
    count: int
    size_bytes: int = 0
    commit: Commit | None = None
    pair: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Committed:
    lease: LeaseKey
    source: Incarnation
    destination: Incarnation


@dataclass(frozen=True, slots=True)
class Stop:
    """Abandon the lease. From a destination: write no more. From a source: I shall write no more."""

    lease: LeaseKey
    source: Incarnation
    destination: Incarnation


@dataclass(frozen=True, slots=True)
class Stopped:
    """No write under the lease can follow."""

    lease: LeaseKey
    source: Incarnation
    destination: Incarnation


RouterMessage = Start | Move | Resume | Revoke | Seen
InstanceMessage = News | Unmoved | Ask
PeerMessage = Reserve | Grant | Wait | Refuse | Stage | Committed | Stop | Stopped
