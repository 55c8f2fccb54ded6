"""What policies see: instances, their load, and the shape of a request. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadView:
    """What an instance says of itself with each step. Blocks are KV blocks of `block_size` tokens."""

    total_blocks: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    held_blocks: int = 0
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
