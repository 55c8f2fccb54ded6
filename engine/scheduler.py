"""Which sequences an instance has, which of them have memory, and what its next step runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..handover.values import Context, Epoch, LeaseKey
from ..policy.admission import Need
from ..policy.batching import Budget, Candidate, Target, bounded, choose_batch
from ..policy.cost import CostModel
from ..policy.state import Priority, blocks_for
from .admission import Admission
from .blocks import GONE, BlockPool, OutOfBlocks
from .outlook import Outlook, memory
from .phase import Phase, Size
from .residence import Residence
from .sequence import Sequence
from .step import StepItem

RECOMPUTED_TOKENS = 256
"""Of sequences that gave their memory back, in a step of an instance that prefills nothing else."""


class Queue(NamedTuple):
    """Sequences that wait for their first step, those that had one, and prompt tokens not yet prefilled."""

    waiting: int
    running: int
    tokens: int


class Scheduler:
    """Sequences by priority, those of one in order of arrival.

    One that needs a block takes it, where none is left, from those that stand after it; so the first that has memory
    always comes to its end: alone it fits, for nothing longer is admitted, and what is leased, paused or read by a
    transfer is so for a bounded time. Who gave memory back is the first to have it again.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        role: Budget,
        prefill: Phase,
        decode: Phase,
        fingerprint: str,
        target: Target | None = None,
        rule: str = "predicted",
        host_blocks: int = 0,
        cost: CostModel | None = None,
    ):
        """`rule` is one of `policy.admission.RULES`.

        `target` bounds what prompts add to a step that has decodes; None leaves the role's whole budget.
        What leaves goes to `host_blocks` of host memory, where `cost` does not say that computing it again is cheaper.
        """
        self.pool = pool
        self.block_size = block_size
        self.role = role
        self.kv = Residence(pool, block_size, fingerprint, host_blocks, cost)
        self.preemptions = 0
        self.cramped = False
        """Somebody found no room in the latest batch, and nobody might give any back."""
        self.closed = False
        """What has not begun waits, for it is to be begun elsewhere."""
        self._admission = Admission(rule, pool, block_size)
        self._target = target
        self._prefill = prefill
        self._decode = decode
        self._sequences: dict[LeaseKey, Sequence] = {}
        self._leased: dict[LeaseKey, Need] = {}
        self._quarantined: set[LeaseKey] = set()
        self._preempted: list[Sequence] = []

    # ---- who is here

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def get(self, session: str, epoch: Epoch) -> Sequence | None:
        return self._sequences.get(LeaseKey(session, epoch))

    def __getitem__(self, key: LeaseKey) -> Sequence:
        """One that is here."""
        return self._sequences[key]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence for its prefill."""
        assert sequence.key not in self._sequences
        self._enter(sequence)

    def _enter(self, sequence: Sequence) -> None:
        self._sequences[sequence.key] = sequence
        if sequence.priority > Priority.NORMAL:
            self._sequences = {one.key: one for one in sorted(self, key=lambda one: -one.priority)}

    def remove(self, key: LeaseKey, now: float) -> None:
        """Forget a sequence; its full blocks stay cached, pinned for as long as it asked from `now` on."""
        sequence = self._sequences.pop(key)
        if self.pool.holds(key):
            self.kv.let_go(sequence, now + sequence.cache_ttl_s if sequence.cache_ttl_s else 0.0)

    def rename(self, sequence: Sequence, epoch: Epoch) -> None:
        """The sequence is owned under another epoch from here on."""
        was = sequence.key
        sequence.rename(epoch)
        self._sequences = {one.key: one for one in self}  # it keeps its place in the order of arrival
        if self.pool.holds(was):
            self.pool.rename(was, sequence.key)

    # ---- leases

    def lease(
        self, key: LeaseKey, blocks: int, size: Size, context: Context, names: list[bytes]
    ) -> int | None:
        """`blocks` for a sequence that is to arrive; None where there is no room or no slot now.

        Else how many leading blocks are here already, by the `names` of its context, or behind its window.
        """
        coming = len(self._leased) - len(self._quarantined)
        if self.slots_taken + coming >= self.role.decode_slots:
            return None
        if any(one.preempted and not one.admitted for one in self):
            return None  # their memory is not given to others
        demand = self._decode.demand(Size(max(size.context, blocks * self.block_size), size.most), self.role)
        need = self._admission.need(demand, key.session, context.application, len(context.emitted))
        gone = self.kv.passed(size.context)
        need = self._within_window(need, blocks - gone)
        if not self._admission.ever_fits(need) or not self._admission.admits(self._needs(), need):
            return None
        known = [GONE] * gone + self.pool.find(names)[gone:]
        try:
            self.pool.lease(key, blocks, self._room(need), known)
        except OutOfBlocks:
            return None
        self._leased[key] = need
        return len(known)

    def adopt(self, sequence: Sequence) -> None:
        """The leased blocks are the sequence's; it runs from the next step on."""
        sequence.room = self._room(self._leased.pop(sequence.key))
        self.pool.adopt(sequence.key)
        self._enter(sequence)
        self.keep(sequence)

    def quarantine(self, key: LeaseKey) -> None:
        self.pool.quarantine(key)
        self._quarantined.add(key)
        held = self.pool.count(key) * self.block_size
        self._leased[key] = Need(held, 0, held)

    def release(self, key: LeaseKey) -> None:
        """Free a lease's blocks, if it had any."""
        self._quarantined.discard(key)
        if self._leased.pop(key, None) is not None:
            self.pool.free(key)

    def swapped(self, number: int, ok: bool) -> None:
        """A copy to or from host memory has ended; see `Residence.swapped`."""
        self.kv.swapped(number, ok, lambda sequence: self._sequences.get(sequence.key) is sequence)

    # ---- steps

    def next_batch(self, preempts: bool = True) -> list[tuple[Sequence, int]]:
        """The sequences to run and how many tokens of each; their blocks are there. See also `take_preempted`.

        Unless it `preempts`, nobody gives memory back for it; see also `cramped`.
        """
        self.cramped = False
        self._admit()
        ready = self._begin([sequence for sequence in self if self._may_run(sequence)])
        candidates = [Candidate(self._runnable(one), one.decoding, one.computed) for one in ready]
        budget = self._budget(ready)
        if self._target is not None:
            budget = bounded(candidates, budget, self._target, least_tokens=self.block_size)
        chosen = [(ready[place], tokens) for place, tokens in choose_batch(candidates, budget)]
        batch = [
            (one, tokens) for one, tokens in chosen if one.admitted and self._make_room(one, tokens, preempts)
        ]
        return [(one, tokens) for one, tokens in batch if one.admitted]

    def _runnable(self, sequence: Sequence) -> int:
        """The tokens that a step may take of it: what it holds then must fit into memory."""
        if self.pool.span is None:
            return sequence.pending
        gone = self.kv.passed(sequence.computed + 1)
        return min(sequence.pending, (self.pool.total + gone) * self.block_size - sequence.computed)

    def take_preempted(self) -> list[Sequence]:
        """Those that gave their memory back since the last call, and are still here."""
        gone, self._preempted = self._preempted, []
        return [sequence for sequence in gone if self._sequences.get(sequence.key) is sequence]

    def _budget(self, ready: list[Sequence]) -> Budget:
        """The role's; what gave its memory back is prefilled whatever the role."""
        if self.role.prefill_tokens or not any(sequence.preempted for sequence in ready):
            return self.role
        return Budget(RECOMPUTED_TOKENS, self.role.decode_slots)

    def item(self, sequence: Sequence, tokens: int, follows: int | None = None) -> StepItem:
        """The sequence's share of a step, and a token drawn where the step reaches its end.

        The last token may be on its way from the item `follows` of the step before.
        """
        start = sequence.computed
        fed = sequence.tokens[start : start + tokens] or [0]
        draws = start + tokens == len(sequence.tokens) + sequence.owed
        table = self.pool.table(sequence.key)[: blocks_for(start + tokens, self.block_size)]
        sample = sequence.sample_spec() if draws else None
        return StepItem(fed, start, table, sample, sequence.logbook(start, tokens), follows)

    def ran(self, sequence: Sequence, tokens: int) -> None:
        """A step that is being launched computes so many more of the sequence's tokens, before any step behind it."""
        sequence.computed += tokens
        sequence.preempted = sequence.preempted and not sequence.decoding

    def keep(self, sequence: Sequence) -> None:
        """Share what it has computed, and keep what is still of use to it."""
        self.kv.publish(sequence)
        self.kv.shed(sequence)

    def ended(self, sequence: Sequence) -> None:
        """It made its last token."""
        self._admission.ended(sequence.application, sequence.made)

    def _may_run(self, sequence: Sequence) -> bool:
        if not sequence.admitted or sequence.paused or sequence.loading or sequence.spent:
            return False
        if self.closed and not sequence.computed:
            return False
        if sequence.limit is not None and len(sequence.tokens) + sequence.owed > sequence.limit:
            return False
        phase = self._decode if sequence.decoding else self._prefill
        return sequence.preempted or phase.wants_step(sequence.pending, self.role)

    def _admit(self) -> None:
        """Let waiting sequences have memory, in order of arrival.

        The first that does not fit holds back the rest, unless it never can.
        """
        if self.closed:
            return
        inside: list[Need] | None = None
        for sequence in self:
            if sequence.admitted:
                continue
            need = self._need(sequence)
            if not self._admission.ever_fits(need):
                continue
            inside = self._needs() if inside is None else inside
            if not self._admission.admits(inside, need):
                return
            sequence.admitted, sequence.room = True, self._room(need)
            inside.append(need)

    def _needs(self) -> list[Need]:
        """Of all that have memory, or are promised some."""
        return [self._need(sequence) for sequence in self if sequence.admitted] + list(self._leased.values())

    def _need(self, sequence: Sequence) -> Need:
        phase = self._decode if sequence.decoding else self._prefill
        demand = phase.demand(sequence.size, self.role)
        need = self._admission.need(demand, sequence.session, sequence.application, sequence.made)
        if self.pool.span is None:
            return need
        chunk = 1 if sequence.decoding else self.role.prefill_tokens or RECOMPUTED_TOKENS
        return self._within_window(
            need, self.pool.span + blocks_for(self.block_size - 1 + chunk, self.block_size)
        )

    def _within_window(self, need: Need, blocks: int) -> Need:
        """What it needs where windows let it hold no more than so many blocks at once.

        Nor more than all there are, which a token's window fits into: a chunk is then as small as memory asks.
        """
        if self.pool.span is None:
            return need
        least = self.pool.span + 1
        return need.within(max(least, min(blocks, self.pool.total)) * self.block_size)

    def _room(self, need: Need) -> int:
        return blocks_for(need.held + need.remaining, self.block_size)

    def _begin(self, ready: list[Sequence]) -> list[Sequence]:
        """Let the prompts that this step has room for take what is cached of them.

        Where the very block that a prompt needs next is computed by one before it, or is being fetched for another, the
        prompt waits to find it cached: it is left out.
        """
        if not self.pool.caches:
            return ready
        runs: list[Sequence] = []
        coming = self.kv.arriving
        left = self._budget(ready).prefill_tokens
        for sequence in ready:
            if not sequence.decoding and left > 0:
                if not self.pool.holds(sequence.key) and not self.kv.take_prefix(sequence, coming):
                    continue
                tokens = min(sequence.pending, left)
                coming.update(
                    self.kv.names(sequence, sequence.computed + tokens)[
                        sequence.computed // self.block_size :
                    ]
                )
                left -= tokens
            runs.append(sequence)
        return runs

    def _make_room(self, sequence: Sequence, tokens: int, preempts: bool) -> bool:
        """Blocks for so many more tokens, taken from later ones where that is needed; False where it must wait."""
        blocks = blocks_for(sequence.computed + tokens, self.block_size)
        if self.pool.length(sequence.key) >= blocks:
            return True
        while True:
            try:
                self.kv.make_room(sequence, blocks)
                return True
            except OutOfBlocks:
                if self.kv.leaving:
                    return False
                if not preempts:
                    self.cramped = True
                    return False
                victim = self._victim(sequence)
                if victim is None:
                    return False
                self._preempt(victim)

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """Of those that came later the last to come; one that is being handed over only where there is no other."""
        everyone = list(self)
        latest_first = reversed(everyone[everyone.index(sequence) + 1 :])
        able = [one for one in latest_first if not one.paused and not one.locked and self.pool.holds(one.key)]
        return next((one for one in able if not one.copying), able[0] if able else None)

    def _preempt(self, victim: Sequence) -> None:
        """Take its memory; what it computed stays cached until it is needed."""
        self.kv.let_go(victim)
        victim.give_back()
        self.preemptions += 1
        self._preempted.append(victim)

    # ---- what it says of itself

    def queue(self) -> Queue:
        waiting = tokens = 0
        for sequence in self._sequences.values():
            waiting += not sequence.computed
            if not sequence.decoding:
                tokens += sequence.pending
        return Queue(waiting, len(self._sequences) - waiting, tokens)

    @property
    def slots_taken(self) -> int:
        """Sequences that decode here, or will after a prefill that has its memory.

        May be above the decode slots where requests were recovered: the earliest run, the others wait in order of
        arrival, and no more arrive by handover.
        """
        return sum(sequence.decoding or (sequence.admitted and not sequence.copying) for sequence in self)

    def outlook(self) -> Outlook:
        """What it costs grows with all that is here: not for every step."""
        waits = next((sequence for sequence in self if not sequence.admitted), None)
        first = self._need(waits) if waits else None
        decoding = [sequence for sequence in self if sequence.decoding]
        return Outlook(
            *memory(self._needs(), first, self.block_size, self.pool.overlap),
            high_priority=sum(one.priority > Priority.NORMAL for one in self if one.admitted),
            decoding=len(decoding),
            decode_tokens=sum(sequence.computed for sequence in decoding),
        )
