"""Decode: a sequence arrives with its KV, or stays after its prefill, and runs to its end."""

from __future__ import annotations

from ..engine.phase import Size
from ..policy.admission import Demand
from ..policy.batching import Budget


class DecodePhase:
    """A sequence that decodes needs room for all of its output; without decode slots it waits to be taken elsewhere."""

    def demand(self, size: Size, role: Budget) -> Demand:
        return Demand(size.context, size.most)

    def wants_step(self, pending_tokens: int, role: Budget) -> bool:
        return role.decode_slots > 0
