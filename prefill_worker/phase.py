"""Prefill: a prompt enters, runs in chunks, and leaves unless the instance decodes as well."""

from __future__ import annotations

from ..engine.phase import Size
from ..policy.admission import Demand
from ..policy.batching import Budget


class PrefillPhase:
    """Where nothing decodes, a sequence never grows beyond its context: it needs no more room than that."""

    def demand(self, size: Size, role: Budget) -> Demand:
        return Demand(size.context, size.most if role.decode_slots else size.context)

    def wants_step(self, pending_tokens: int, role: Budget) -> bool:
        return role.prefill_tokens > 0
