"""Deadlines and sizes of the handover protocol."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class HandoverConfig:
    """Deadlines in seconds, sizes in blocks. Every party of a cluster must run under the same values."""

    heartbeat_s: float = 0.1
    """How often an instance or a router that has nothing to say shows that it lives."""

    hung_after_s: float = 1.0
    """An instance silent for longer counts as lost."""

    silence_s: float = 2.0
    """A router that hears nothing of a session for this long re-prefills it elsewhere."""

    lease_s: float = 3.0
    """Life of a lease; each stage renews it."""

    reserve_wait_s: float = 1.0
    """How long a source waits for a grant before the router picks another destination."""

    stop_s: float = 5.0
    """How long a one-sided writer may take to answer `stop`, asked twice, before its end is asked for.

    It answers between steps, so this is longer than any step.
    """

    transport_s: float = 2.0
    """Limit of one transport operation."""

    grace_s: float = 30.0
    """How long marks are kept, and how long an instance keeps the sequences of a silent router."""

    copy_share: float = 0.5
    """Most of the time that copies of running sequences take from an instance that steps; what a paused sequence waits
    for, the final stage above all, is copied at once."""

    stage_blocks: int = 64
    """Most blocks in one message."""

    final_blocks: int = 16
    """Most blocks in the final stage, which carries the commit."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"handover.{field.name} must be above 0, not {getattr(self, field.name)}.")
        for shorter, longer in (("heartbeat_s", "hung_after_s"), ("hung_after_s", "grace_s")):
            if getattr(self, shorter) >= getattr(self, longer):
                raise ValueError(
                    f"handover.{shorter} must be below handover.{longer}, or nobody lives long enough."
                )
        if self.copy_share > 1:
            raise ValueError(f"handover.copy_share must be at most 1, not {self.copy_share}.")
        if self.final_blocks > self.stage_blocks:
            raise ValueError("handover.final_blocks must not exceed handover.stage_blocks.")
