"""What policies see: instances, their load, and the shape of a request. Values only."""

from __future__ import annotations

from dataclasses import dataclass


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
    written_blocks: int = 0
    """Blocks that were sent away by writing them in place, in another instance's memory."""
    sent_blocks: int = 0
    """Blocks that were sent away over a pair."""

    @property
    def free_slots(self) -> int:
        """Decode slots that nothing here has or waits for; below 0 where recovered requests wait for one."""
        return self.decode_slots - self.running - self.waiting


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

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.life

    @property
    def may_prefill(self) -> bool:
        return self.alive and not self.draining and self.load.prefill_tokens > 0

    @property
    def may_decode(self) -> bool:
        return self.alive and not self.draining and self.load.decode_slots > 0

    def holds(self, tokens: int) -> bool:
        """Whether a sequence of that many tokens fits when nothing else is there."""
        return blocks_for(tokens, self.load.block_size) <= self.load.total_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """What a policy may know of a request: its size. `prompt_tokens` counts output that must be prefilled again."""

    prompt_tokens: int
    max_new_tokens: int = 1


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold that many tokens; `block_size` 0 means that it is not known, and nothing is counted."""
    return -(-tokens // block_size) if block_size else 0
