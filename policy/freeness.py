"""How long an instance can go on as it is: Llumnix's virtual usage and freeness (Sun et al., OSDI 2024).

Both are of the memory that it is predicted to need at its peak. One number serves dispatch, migration and scaling:
what waits, what has priority and what is to end are told by memory that they are said to use.
"""

from __future__ import annotations

import math

from .state import InstanceView, LoadView

HEADROOM = 0.2
"""Share of its blocks that an instance keeps free while it runs anything of high priority."""


def usage_blocks(load: LoadView) -> float:
    """Virtual usage of all sequences together: what those inside are predicted to need, what the first that waits
    asks for, and headroom for the class of high priority, which its running sequences share evenly."""
    headroom = HEADROOM * load.total_blocks if load.high_priority else 0.0
    return load.needed_blocks + load.head_blocks + headroom


def freeness(view: InstanceView, blocks: float = 0.0, sequences: int = 0) -> float:
    """Decode steps until memory is used up: (blocks - usage) in tokens, over the batch size; may be negative.

    `blocks` and `sequences` are what it was given beside that its load shows. What drains has infinite usage.
    """
    if not view.alive or view.draining:
        return -math.inf
    load = view.load
    spare = load.total_blocks - usage_blocks(load) - blocks
    return spare * load.block_size / max(1, load.running + sequences)


def steps_left(load: LoadView) -> float:
    """Decode steps until what is free now is used up, if nobody ends before."""
    return load.room_blocks * load.block_size / max(1, load.running)
