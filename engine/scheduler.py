"""Which sequences an instance has, what memory it promised them, and what its next step runs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ..handover.values import Context, Epoch, LeaseKey
from ..policy import prefix
from ..policy.admission import admits, promise
from ..policy.batching import Budget, Candidate, Target, bounded, choose_batch
from ..policy.state import blocks_for
from .blocks import BlockPool, OutOfBlocks
from .phase import Phase, Size
from .sequence import Sequence
from .step import StepItem


class Scheduler:
    """Sequences in order of arrival. A sequence that was admitted can always run to its end."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        role: Budget,
        prefill: Phase,
        decode: Phase,
        fingerprint: str,
        target: Target | None = None,
    ):
        """`target` bounds what prompts add to a step that has decodes; None leaves the role's whole budget."""
        self.pool = pool
        self.block_size = block_size
        self.role = role
        self.asked_tokens = 0
        """Tokens of all prompts begun."""
        self.hit_tokens = 0
        """How many of them were cached."""
        self._fingerprint = fingerprint
        self._target = target
        self._prefill = prefill
        self._decode = decode
        self._sequences: dict[LeaseKey, Sequence] = {}
        self._leased: dict[LeaseKey, int] = {}
        self._quarantined: set[LeaseKey] = set()

    # ---- who is here

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def get(self, session: str, epoch: Epoch) -> Sequence | None:
        return self._sequences.get(LeaseKey(session, epoch))

    def add(self, sequence: Sequence, leaves: bool = False) -> None:
        """Queue a sequence for its prefill; `leaves` says that it is to decode elsewhere."""
        assert sequence.key not in self._sequences
        sequence.leaves = leaves
        self._sequences[sequence.key] = sequence

    def remove(self, key: LeaseKey, now: float) -> None:
        """Forget a sequence; its full blocks stay cached, pinned for as long as it asked from `now` on."""
        sequence = self._sequences.pop(key)
        if self.pool.holds(key):
            names = self._names(sequence, sequence.computed) if self.pool.caches else []
            self.pool.free(key, names, now + sequence.cache_ttl_s if sequence.cache_ttl_s else 0.0)

    def rename(self, sequence: Sequence, epoch: Epoch) -> None:
        """The sequence is owned under another epoch from here on."""
        was = sequence.key
        sequence.epoch = epoch
        self._sequences = {one.key: one for one in self}  # it keeps its place in the order of arrival
        self.pool.rename(was, sequence.key)

    # ---- leases

    def names(self, context: Context) -> list[bytes]:
        """Of the blocks that the KV of a sequence with this context fills, when all but its last token has some."""
        if not self.pool.caches:
            return []
        tokens = (*context.prompt, *context.emitted)
        return prefix.chain(_secret(self._fingerprint, context.salt), tokens[:-1], self.block_size)

    def lease(self, key: LeaseKey, blocks: int, size: Size, names: list[bytes]) -> int | None:
        """Blocks for a sequence that is to arrive; None where there is no room or no slot now.

        Else how many leading blocks are here already, by the `names` of its context.
        """
        coming = len(self._leased) - len(self._quarantined)
        if self.slots_taken + coming >= self.role.decode_slots:
            return None
        needed = promise(self._decode.demand(size, self.role), self.block_size)
        if not admits(max(needed, blocks), self.promised, self.pool.total):
            return None
        known = self.pool.find(names)
        try:
            self.pool.lease(key, blocks, needed, known)
        except OutOfBlocks:
            return None
        self._leased[key] = max(needed, blocks)
        return len(known)

    def adopt(self, sequence: Sequence) -> None:
        """The leased blocks are the sequence's; it runs from the next step on."""
        sequence.promised = self._leased.pop(sequence.key)
        self.pool.adopt(sequence.key)
        self._sequences[sequence.key] = sequence
        self._publish(sequence)

    def quarantine(self, key: LeaseKey) -> None:
        self.pool.quarantine(key)
        self._quarantined.add(key)

    def release(self, key: LeaseKey) -> None:
        """Free a lease's blocks, if it had any."""
        self._quarantined.discard(key)
        if self._leased.pop(key, None) is not None:
            self.pool.free(key)

    @property
    def promised(self) -> int:
        """Blocks set aside, for sequences and for leases."""
        return sum(sequence.promised for sequence in self) + sum(self._leased.values())

    # ---- steps

    def next_batch(self) -> list[tuple[Sequence, int]]:
        """The sequences to run and how many tokens of each; their blocks are there."""
        self._admit()
        ready = self._begin([sequence for sequence in self if self._may_run(sequence)])
        candidates = [Candidate(one.pending, one.decoding, one.computed) for one in ready]
        budget = self.role
        if self._target is not None:
            budget = bounded(candidates, budget, self._target, least_tokens=self.block_size)
        batch = [(ready[place], tokens) for place, tokens in choose_batch(candidates, budget)]
        for sequence, tokens in batch:
            self._make_room(sequence, sequence.computed + tokens)
        return batch

    def item(self, sequence: Sequence, tokens: int) -> StepItem:
        """The sequence's share of a step, and a token drawn where the step reaches its end."""
        start = sequence.computed
        fed = sequence.tokens[start : start + tokens]
        sample = sequence.sample_spec() if start + tokens == len(sequence.tokens) else None
        table = self.pool.table(sequence.key)[: blocks_for(start + tokens, self.block_size)]
        return StepItem(fed, start, table, sample, sequence.logbook(start, tokens))

    def ran(self, sequence: Sequence, tokens: int) -> None:
        """A step has computed so many more of the sequence's tokens."""
        sequence.computed += tokens
        self._publish(sequence)

    def _may_run(self, sequence: Sequence) -> bool:
        phase = self._decode if sequence.decoding else self._prefill
        return sequence.admitted and not sequence.paused and phase.wants_step(sequence.pending, self.role)

    def _admit(self) -> None:
        """Promise memory to waiting sequences, in order of arrival.

        The first that does not fit holds back the rest, unless it never can.
        """
        promised = self.promised
        for sequence in self:
            if sequence.admitted:
                continue
            needed = promise(self._prefill.demand(sequence.size, self.role), self.block_size)
            if not admits(needed, 0, self.pool.total):
                continue
            if not admits(needed, promised, self.pool.total):
                return
            sequence.admitted, sequence.promised = True, needed
            promised += needed

    def _begin(self, ready: list[Sequence]) -> list[Sequence]:
        """Let the prompts that this step has room for take what is cached of them.

        Where one before it computes the very block that a prompt needs next, the prompt waits to find it cached: it is
        left out.
        """
        if not self.pool.caches:
            return ready
        runs: list[Sequence] = []
        coming: set[bytes] = set()
        left = self.role.prefill_tokens
        for sequence in ready:
            if not sequence.decoding and left > 0:
                if not self.pool.holds(sequence.key) and not self._take_prefix(sequence, coming):
                    continue
                tokens = min(sequence.pending, left)
                coming.update(
                    self._names(sequence, sequence.computed + tokens)[sequence.computed // self.block_size :]
                )
                left -= tokens
            runs.append(sequence)
        return runs

    def _take_prefix(self, sequence: Sequence, coming: set[bytes]) -> bool:
        """Hold what is cached of a prompt that begins; False where the next of its blocks is among those `coming`."""
        readable = (
            0 if sequence.needs_whole_prompt else len(sequence.tokens) - 1
        )  # the last one runs in any case
        names = self._names(sequence, readable)
        known = self.pool.find(names)
        if len(known) < len(names) and names[len(known)] in coming:
            return False
        if known:
            self.pool.hold(sequence.key, len(known), sequence.promised, known)
            sequence.computed = len(known) * self.block_size
        self.asked_tokens += len(sequence.tokens)
        self.hit_tokens += sequence.computed
        return True

    def _publish(self, sequence: Sequence) -> None:
        """What is full and computed may be shared from now on."""
        blocks = sequence.computed // self.block_size
        if self.pool.caches and blocks > sequence.published:
            self.pool.publish(sequence.key, self._names(sequence, sequence.computed))
            sequence.published = blocks

    def _names(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """Of the full blocks among the first `tokens`."""
        blocks = tokens // self.block_size
        if len(sequence.names) < blocks:
            key = _secret(self._fingerprint, sequence.salt)
            sequence.names = prefix.chain(key, sequence.tokens, self.block_size, sequence.names, blocks)
        return sequence.names[:blocks]

    def _make_room(self, sequence: Sequence, tokens: int) -> None:
        blocks = blocks_for(tokens, self.block_size)
        if self.pool.holds(sequence.key):
            self.pool.grow(sequence.key, blocks)
        else:
            self.pool.hold(sequence.key, blocks, sequence.promised)

    # ---- what it says of itself

    @property
    def waiting(self) -> int:
        return sum(not sequence.computed for sequence in self)

    @property
    def running(self) -> int:
        return sum(sequence.computed > 0 for sequence in self)

    @property
    def slots_taken(self) -> int:
        """Sequences that decode here, or will after a prefill that has its memory.

        May be above the decode slots where requests were recovered: the earliest run, the others wait in order of
        arrival, and no more arrive by handover.
        """
        return sum(sequence.decoding or (sequence.admitted and not sequence.leaves) for sequence in self)

    @property
    def queued_tokens(self) -> int:
        return sum(sequence.pending for sequence in self if not sequence.decoding)


@lru_cache(maxsize=1024)
def _secret(fingerprint: str, salt: str) -> bytes:
    return prefix.secret(fingerprint, salt)
