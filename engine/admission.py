"""Who may enter an instance's memory: what each sequence is expected to need, and the rule that is applied."""

from __future__ import annotations

from collections.abc import Iterable

from ..policy import admission as policy
from ..policy.admission import Demand, Need
from ..policy.lengths import OutputLengths
from .blocks import BlockPool


class Admission:
    """Applies one of `policy.admission.RULES` to a pool. `seed` draws the lengths that it expects."""

    def __init__(self, rule: str, pool: BlockPool, block_size: int, seed: int = 0):
        assert rule in policy.RULES
        self._rule = rule
        self._pool = pool
        self._block_size = block_size
        self._seed = seed
        self._lengths = OutputLengths()

    def ended(self, application: str, length: int) -> None:
        """An output of this application came to its end at so many tokens."""
        self._lengths.add(application, length)

    def need(self, demand: Demand, session: str, application: str, made: int) -> Need:
        """What a sequence with `made` tokens of output needs; at its longest where no outputs tell more."""
        most = max(demand.tokens, demand.most_tokens)
        expected = None
        if most > demand.tokens:
            share = policy.share_of(self._seed, session)
            expected = policy.expected_length(self._lengths.of(application), made, share)
        remaining = most - demand.tokens if expected is None else expected - made
        return Need(demand.tokens, min(remaining, most - demand.tokens), most)

    def admits(self, inside: Iterable[Need], entering: Need) -> bool:
        """Whether one more fits; a block that several hold counts once."""
        total = self._pool.total + self._pool.overlap
        return policy.admits(self._rule, list(inside), entering, self._block_size, total)

    def ever_fits(self, need: Need) -> bool:
        return policy.ever_fits(need, self._block_size, self._pool.total)
