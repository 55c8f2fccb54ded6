"""How many requests got what their class is promised, counted since the router began."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..policy.fairness import Slo


@dataclass(frozen=True, slots=True)
class Attainment:
    """First tokens are the prefill pool's work, the pace of what follows the decode pool's.

    A request that is refused since all have enough before them is one that came too late: who serves in time what he
    takes, and takes little, is short of instances all the same. Where that is for want of room to decode, a first token
    that comes too late is the decode pool's.
    """

    first_tokens: int = 0
    first_tokens_in_time: int = 0
    outputs: int = 0
    """Those that came to their end."""
    outputs_in_time: int = 0

    def first_token(self, ttft_s: float, slo: Slo, decoding: bool) -> Attainment:
        if slo.ttft_s and ttft_s > slo.ttft_s:
            return self.missed(decoding)
        first_tokens, in_time = self.first_tokens + 1, self.first_tokens_in_time + 1
        return replace(self, first_tokens=first_tokens, first_tokens_in_time=in_time)

    def missed(self, decoding: bool) -> Attainment:
        """A request is refused or late. `decoding`: those that wait do so since a token would take too long."""
        if decoding:
            return replace(self, outputs=self.outputs + 1)
        return replace(self, first_tokens=self.first_tokens + 1)

    def output(self, tpot_s: float, slo: Slo) -> Attainment:
        met = not slo.tpot_s or tpot_s <= slo.tpot_s
        return replace(self, outputs=self.outputs + 1, outputs_in_time=self.outputs_in_time + met)
