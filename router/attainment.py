"""How many requests got what their class is promised, counted since the router began."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..policy.fairness import Slo


@dataclass(frozen=True, slots=True)
class Attainment:
    """First tokens are the prefill pool's work, the pace of what follows the decode pool's.

    A request that is refused since all have enough before them is one that came too late, of those that it would have
    waited for: who serves in time what he takes, and takes little, is short of instances all the same.
    """

    first_tokens: int = 0
    first_tokens_in_time: int = 0
    outputs: int = 0
    """Those that came to their end."""
    outputs_in_time: int = 0

    def first_token(self, ttft_s: float, slo: Slo) -> Attainment:
        met = not slo.ttft_s or ttft_s <= slo.ttft_s
        return replace(
            self,
            first_tokens=self.first_tokens + 1,
            first_tokens_in_time=self.first_tokens_in_time + met,
        )

    def refused(self, decoding: bool) -> Attainment:
        if decoding:
            return replace(self, outputs=self.outputs + 1)
        return replace(self, first_tokens=self.first_tokens + 1)

    def output(self, tpot_s: float, slo: Slo) -> Attainment:
        met = not slo.tpot_s or tpot_s <= slo.tpot_s
        return replace(self, outputs=self.outputs + 1, outputs_in_time=self.outputs_in_time + met)
