"""What policies see: instances, their load, and the shape of a request. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

Key = tuple[str, int]
"""Name and life of an instance."""


class Priority(IntEnum):
    """Classes of requests; the higher one goes first."""

    NORMAL = 1
    HIGH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadView:
    """What an instance says of itself with each step. Blocks are KV blocks of `block_size` tokens."""

    total_blocks: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    """Held by nobody; they give way to new ones."""
    held_blocks: int = 0
    """By sequences, or pinned for a next turn."""
    leased_blocks: int = 0
    quarantined_blocks: int = 0
    waiting: int = 0
    """Sequences that wait for their first step."""
    running: int = 0
    queued_tokens: int = 0
    """Prompt tokens not yet prefilled."""
    prefill_tokens: int = 0
    """Most prompt tokens that a step takes; 0 where the instance does not prefill."""
    decode_slots: int = 0
    """Most sequences that decode at once; 0 where the instance does not decode."""
    block_size: int = 0
    steps: int = 0
    """Steps since the instance began. A view with more of them is newer."""
    step_s: float = 0.0
    """Mean time of recent steps."""
    idle_s: float = 0.0
    """Time since the step thread's last sign of life."""
    asked_tokens: int = 0
    """Tokens of all prompts begun, those prefilled again included."""
    hit_tokens: int = 0
    """How many of them were cached, and not computed."""
    preemptions: int = 0
    """How often a sequence had to give its memory back."""
    swapped_blocks: int = 0
    """Blocks that went to host memory and came back."""
    written_blocks: int = 0
    """Blocks that were sent away by writing them in place, in another instance's memory."""
    sent_blocks: int = 0
    """Blocks that were sent away over a pair."""
    peak_blocks: int = 0
    """Most that those with memory, and what is leased to others, are predicted to need at a time."""
    head_blocks: int = 0
    """What the first that waits for memory needs; 0 where none does."""
    high_priority: int = 0
    """Sequences of high priority that have memory."""
    decoding: int = 0
    """Sequences past their prefill."""
    decode_tokens: int = 0
    """Sum of their contexts."""
    most_blocks: int = 0
    """Where windows bound it: the most blocks that a sequence has while it decodes; else 0."""
    draining: bool = False
    """It takes nothing more, and is to be emptied."""
    sessions: int = 0
    """Sessions that have something here, if only a lease or tokens that their router has not acknowledged."""

    @property
    def needed_blocks(self) -> int:
        """What those inside need at their peak, as far as that is predicted; at least what they hold."""
        return max(self.peak_blocks, self.held_blocks + self.leased_blocks + self.quarantined_blocks)

    def blocks_of(self, tokens: int) -> int:
        """Blocks of a sequence of that many tokens while it decodes."""
        blocks = blocks_for(tokens, self.block_size)
        return min(blocks, self.most_blocks or blocks)

    @property
    def room_blocks(self) -> int:
        """What can be had now; cached blocks give way."""
        return self.free_blocks + self.cached_blocks

    @property
    def free_slots(self) -> int:
        """Decode slots that nothing here has or waits for; below 0 where recovered requests wait for one."""
        return self.decode_slots - self.running - self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """A running sequence, as its router knows it."""

    session: str
    tokens: int
    """Prompt and output so far: the KV that a move copies."""
    remaining: int
    """Output that it is expected to make yet."""
    priority: int = Priority.NORMAL
    movable: bool = True
    """It waits or has made its first token, and no handover of it is under way."""
    waits: bool = False
    """It has no KV: it has not begun, or gave its memory back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """An instance as its observer knows it. The role is data: what `load` says that it may take."""

    name: str
    life: int
    address: str = ""
    pool: str = ""
    load: LoadView = LoadView()
    seen_at: float = 0.0
    """When `load` arrived, on the observer's clock."""
    alive: bool = True
    draining: bool = False
    placed: bool = True
    """There is room for it somewhere, if it does not serve yet."""
    sequences: tuple[SequenceView, ...] = ()
    """Those that it runs, where the observer knows them one by one."""

    @property
    def key(self) -> Key:
        return self.name, self.life

    @property
    def may_prefill(self) -> bool:
        return self.alive and not self.draining and self.load.prefill_tokens > 0

    @property
    def may_decode(self) -> bool:
        return self.alive and not self.draining and self.load.decode_slots > 0

    def holds(self, tokens: int) -> bool:
        """Whether a sequence of that many tokens fits when nothing else is there."""
        return self.load.blocks_of(tokens) <= self.load.total_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """What a policy may know of a request: its size and whose it is."""

    prompt_tokens: int
    """Output that must be prefilled again counts."""
    max_new_tokens: int = 1
    expected_tokens: int | None = None
    """Output that it is expected to make; None where nothing tells."""
    names: tuple[bytes, ...] = ()
    """Of the full blocks of its prompt, where somebody follows which instance has them."""
    cached: Mapping[Key, int] = field(default_factory=dict)
    """How many tokens of its prompt an instance is believed to have cached; none where it is not named."""
    priority: int = Priority.NORMAL
    tenant: str = ""
    application: str = ""

    def prefix(self, instance: Key) -> int:
        """Tokens that the instance need not compute; the last one it computes in any case."""
        return min(self.cached.get(instance, 0), self.prompt_tokens - 1)


class MoveReason(Enum):
    """Why a running sequence is moved."""

    BALANCE = "balance"
    MAKE_ROOM = "make_room"
    """For the first that waits there: free memory is scattered over instances."""
    START = "start"
    """Of one that waits, where there is room for it now. It has no KV to copy."""
    HEADROOM = "headroom"
    """For one of high priority that runs there."""
    DRAIN = "drain"
    ROLE_CHANGE = "role_change"
    """Its instance decodes no more."""


@dataclass(frozen=True, slots=True)
class Move:
    """A live migration to start."""

    session: str
    source: Key
    destination: Key
    reason: MoveReason


class Scale(Enum):
    """What is done to a pool."""

    GROW = "grow"
    """One more instance."""
    DRAIN = "drain"
    """One of its instances moves its requests away and ends; one that does not serve yet is taken back."""
    FLIP = "flip"
    """One of its instances goes over to another pool, weights and all."""


@dataclass(frozen=True, slots=True)
class ScaleAction:
    """A change of the pools to start. `instance` is whom it concerns, and `to` the pool that a flip leads to."""

    kind: Scale
    pool: str
    reason: str
    instance: Key | None = None
    to: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the pools at the time; names begin with the pool's, and end in their units."""


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold that many tokens; `block_size` 0 means that it is not known, and nothing is counted."""
    return -(-tokens // block_size) if block_size else 0
