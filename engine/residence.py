"""Where the KV of sequences is: in blocks of their own or shared, in host memory, or still to be computed."""

from __future__ import annotations

from collections.abc import Callable, Container
from functools import lru_cache

from ..handover.values import Context
from ..policy import preemption, prefix
from ..policy.cost import CostModel
from .blocks import BlockPool
from .host_tier import HostTier, Swap
from .sequence import Sequence


class Residence:
    """Gives sequences blocks, finds what others computed, and keeps what they leave, as the scheduler says."""

    def __init__(
        self, pool: BlockPool, block_size: int, fingerprint: str, host_blocks: int, cost: CostModel | None
    ):
        """Without `host_blocks` nothing is kept in host memory; `cost` says what is cheaper computed again."""
        self.asked_tokens = 0
        """Tokens of all prompts begun."""
        self.hit_tokens = 0
        """How many of them were cached."""
        self._pool = pool
        self._block_size = block_size
        self._fingerprint = fingerprint
        self._cost = cost
        self._host = HostTier(pool, host_blocks) if host_blocks and pool.caches else None

    # ---- names

    def names_of(self, context: Context) -> list[bytes]:
        """Of the blocks that the KV of a sequence with this context fills, when all but its last token has some."""
        if not self._pool.caches:
            return []
        tokens = (*context.prompt, *context.emitted)
        return prefix.chain(_secret(self._fingerprint, context.salt), tokens[:-1], self._block_size)

    def names(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """Of the full blocks among the first `tokens`."""
        blocks = tokens // self._block_size
        if len(sequence.names) < blocks:
            key = _secret(self._fingerprint, sequence.salt)
            sequence.names = prefix.chain(key, sequence.tokens, self._block_size, sequence.names, blocks)
        return sequence.names[:blocks]

    # ---- blocks

    def passed(self, tokens: int) -> int:
        """How many leading blocks the last of so many tokens does not see, nor any that follows."""
        return self._pool.behind((tokens - 1) // self._block_size)

    def make_room(self, sequence: Sequence, blocks: int) -> None:
        """Let it hold so many blocks in all; OutOfBlocks, with nothing changed, where too few can be had."""
        if self._pool.holds(sequence.key):
            self.shed(sequence)  # a handover that needed more may be over
            self._pool.grow(sequence.key, blocks)
        else:
            self._pool.hold(sequence.key, blocks, sequence.room)

    def publish(self, sequence: Sequence) -> None:
        """What is full and computed, by steps that no other overtakes, may be shared from now on, once it has a name:
        a token in flight has none."""
        known = min(sequence.computed, len(sequence.tokens))
        blocks = known // self._block_size
        if self._pool.caches and blocks > sequence.published:
            self._pool.publish(sequence.key, self.names(sequence, known))
            sequence.published = blocks

    def shed(self, sequence: Sequence) -> None:
        """Let go of the blocks that a sliding window has passed, as far as no handover needs them."""
        if self._pool.span is not None:
            passed, kept_from = self.passed(sequence.computed + 1), sequence.kept_from
            self._pool.shed(sequence.key, passed if kept_from is None else min(passed, kept_from))

    def let_go(self, sequence: Sequence, until: float = 0.0) -> None:
        """Free its blocks: the full ones stay cached, and are copied to host memory first where that pays."""
        names = self.names(sequence, sequence.computed) if self._pool.caches else []
        if self._host is not None and self._swaps_out(names, self._pool.gone(sequence.key)):
            self._host.leave(sequence.key, names, until)
        else:
            self._pool.free(sequence.key, names, until)

    def _swaps_out(self, names: list[bytes], gone: int) -> bool:
        assert self._host is not None
        tokens, new_tokens = len(names) * self._block_size, self._host.lacks(names, gone) * self._block_size
        return preemption.swaps_out(tokens, new_tokens, self._cost)

    def take_prefix(self, sequence: Sequence, coming: Container[bytes]) -> bool:
        """Hold what is cached of a prompt that begins.

        False where it must wait: the next of its blocks is among those `coming`, or comes from host memory.
        """
        readable = 0 if sequence.needs_whole_prompt else len(sequence.tokens) - 1  # the last runs in any case
        names = self.names(sequence, readable)
        known = self._pool.find(names)
        if len(known) < len(names) and names[len(known)] in coming:
            return False
        if self._fetch(sequence, names, known):
            return False
        if known:
            self._pool.hold(sequence.key, len(known), sequence.room, known)
        self._found(sequence, len(known))
        return True

    def _found(self, sequence: Sequence, blocks: int) -> None:
        """The KV of its leading blocks is there. A prompt that waits for its turn is counted when it first asks."""
        sequence.computed = blocks * self._block_size
        self.hit_tokens += sequence.computed
        if not sequence.asked:
            sequence.asked = True
            self.asked_tokens += len(sequence.tokens)

    # ---- host memory

    @property
    def leaving(self) -> bool:
        """Blocks are on their way to host memory, and can be had afterwards."""
        return self._host is not None and self._host.leaving

    @property
    def arriving(self) -> set[bytes]:
        """Names of the blocks that are on their way from host memory."""
        return set() if self._host is None else self._host.arriving

    @property
    def swapped_blocks(self) -> int:
        """How many blocks went to host memory and came back."""
        return 0 if self._host is None else self._host.returned_blocks

    @property
    def swapping(self) -> bool:
        """Copies between the tiers are under way."""
        return self._host is not None and not self._host.idle

    def _fetch(self, sequence: Sequence, names: list[bytes], known: list[int]) -> bool:
        """Begin to bring back what only host memory has of a sequence; False where there is nothing to bring."""
        if self._host is None:
            return False
        size, more = self._block_size, len(self._host.host.find(names)) - len(known)
        if more <= 0 or not preemption.fetches(more * size, len(known) * size, self._cost):
            return False
        sequence.loading = self._host.fetch(names, known, sequence.room, sequence)
        return sequence.loading

    def take_swaps(self) -> list[Swap]:
        """Copies between the tiers that are to begin now; `swapped` must follow on each."""
        return [] if self._host is None else self._host.take_swaps()

    def swapped(self, number: int, ok: bool, is_here: Callable[[Sequence], bool]) -> None:
        """A copy has ended, and touches no block any more."""
        assert self._host is not None
        arrival = self._host.ended(number, ok)
        if arrival is None:
            return
        sequence = arrival.waiting
        assert isinstance(sequence, Sequence)
        sequence.loading = False
        if not is_here(sequence):
            self._pool.free(arrival.key, arrival.names)
            return
        self._pool.rename(arrival.key, sequence.key)
        self._found(sequence, len(arrival.names))
        self.publish(sequence)


@lru_cache(maxsize=1024)
def _secret(fingerprint: str, salt: str) -> bytes:
    return prefix.secret(fingerprint, salt)
