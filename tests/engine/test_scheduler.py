"""The scheduler: whoever fits runs to its end, in order of arrival, within the budget, whatever rule lets it in."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.decode_worker.phase import DecodePhase
from penstock.engine.blocks import BlockPool
from penstock.engine.outlook import Outlook
from penstock.engine.phase import Size
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.handover.values import Commit, Context, Epoch, LeaseKey, SamplingParams, TokenRecord
from penstock.policy.admission import RULES
from penstock.policy.batching import Budget, Target
from penstock.policy.cost import Law, Piece, StepCost
from penstock.policy.state import Priority
from penstock.prefill_worker.phase import PrefillPhase

BLOCK, TOTAL, CONTEXT = 4, 30, 80


def scheduler(
    role: Budget,
    total: int = TOTAL,
    caches: bool = True,
    target: Target | None = None,
    rule: str = "predicted",
    span: int | None = None,
) -> Scheduler:
    pool = BlockPool(total, caches, span)
    return Scheduler(pool, BLOCK, role, PrefillPhase(), DecodePhase(), "model", target, rule)


def sequence(number: int, prompt: int, max_tokens: int, like: int | None = None, **context) -> Sequence:
    """A prompt of its own, or the same as that of another of this `like`."""
    first = (number if like is None else like) * 1000
    told = Context(tuple(range(first, first + prompt)), (), SamplingParams(max_tokens=max_tokens), **context)
    return Sequence.begin(f"s{number}", Epoch(1, 1), told, CONTEXT)


def step(now: Scheduler) -> list[tuple[Sequence, int]]:
    """Run one step as the engine does, and remove what ended."""
    batch = now.next_batch()
    for gone in now.take_preempted():
        assert not gone.computed and not now.pool.holds(gone.key) and gone not in [one for one, _ in batch]
    items = [now.item(one, tokens) for one, tokens in batch]
    for (one, tokens), item in zip(batch, items, strict=True):
        end = one.computed + tokens
        assert len(item.tokens) == tokens and item.start == one.computed
        assert len(item.block_table) * BLOCK >= end > (len(item.block_table) - 1) * BLOCK
        now.ran(one, tokens)
        now.keep(one)
        assert one.computed == end
        if item.sample and one.append(1).end is not None:
            now.ended(one)
            now.remove(one.key, 0.0)
    return batch


def untouchable(now: Scheduler, one: Sequence) -> bool:
    return (one.paused or one.locked) and now.pool.holds(one.key)


class Laws(RuleBasedStateMachine):
    """An instance that decodes: prompts come, leases are asked for, adopted and expire, sequences are cancelled.

    Now and then a sequence is paused, or a transfer reads it. Where a token sees but two full blocks before its own,
    eight are enough for any sequence.
    """

    def __init__(self):
        super().__init__()
        self.now = scheduler(Budget(8, 4))
        self.number = 0
        self.asked: dict[LeaseKey, tuple[int, int]] = {}
        self.quarantined: set[LeaseKey] = set()

    @initialize(rule=st.sampled_from(tuple(RULES)), prefills=st.booleans(), windowed=st.booleans())
    def begin(self, rule, prefills, windowed):
        self.rule = rule
        role, total, span = Budget(8 if prefills else 0, 4), 8 if windowed else TOTAL, 2 if windowed else None
        self.now = scheduler(role, total, rule=rule, span=span)

    @precondition(lambda self: list(self.now))
    @rule(place=st.integers(0, 100), state=st.sampled_from(("paused", "locked", "copying")), on=st.booleans())
    def a_handover_begins_or_ends(self, place, state, on):
        sequences = list(self.now)
        setattr(sequences[place % len(sequences)], state, on)

    @precondition(lambda self: self.now.role.prefill_tokens)
    @rule(
        prompt=st.integers(1, 60),
        more=st.integers(1, 60),
        like=st.integers(0, 2),
        priority=st.sampled_from((Priority.NORMAL, Priority.NORMAL, Priority.HIGH)),
    )
    def a_prompt_comes(self, prompt, more, like, priority):
        self.number += 1
        self.now.add(sequence(self.number, prompt, more, like, cache_ttl_s=float(like), priority=priority))

    @rule(held=st.integers(1, 60), more=st.integers(1, 60))
    def a_lease_is_asked_for(self, held, more):
        self.number += 1
        key = LeaseKey(f"s{self.number}", Epoch(1, 2))
        size, context = Size(held, min(held + more, CONTEXT)), Context(tuple(range(held)))
        have = self.now.lease(key, -(-(held + 1) // BLOCK), size, context, self.now.kv.names_of(context))
        if have is not None:
            assert 0 <= have * BLOCK < held, "the last token runs"
            self.asked[key] = held, more

    @precondition(lambda self: self.asked)
    @rule()
    def a_sequence_arrives(self):
        key = next(iter(self.asked))
        held, more = self.asked.pop(key)
        context = Context(tuple(range(held)), (), SamplingParams(max_tokens=more + 1))
        commit = Commit(0, (TokenRecord(5),), held)
        self.now.adopt(Sequence.adopt(key, context, commit, CONTEXT + 1))

    @precondition(lambda self: self.asked)
    @rule(writer_lives=st.booleans())
    def a_lease_expires(self, writer_lives):
        key = next(iter(self.asked))
        del self.asked[key]
        if writer_lives:
            self.now.quarantine(key)
            self.quarantined.add(key)
        else:
            self.now.release(key)

    @precondition(lambda self: self.quarantined)
    @rule()
    def a_writer_is_fenced(self):
        self.now.release(self.quarantined.pop())

    @precondition(lambda self: list(self.now))
    @rule(place=st.integers(0, 100))
    def a_sequence_is_cancelled(self, place):
        sequences = list(self.now)
        self.now.remove(sequences[place % len(sequences)].key, 0.0)

    @rule(steps=st.integers(1, 12))
    def steps_run(self, steps):
        for _ in range(steps):
            still = {
                one.key: list(self.now.pool.table(one.key)) for one in self.now if untouchable(self.now, one)
            }
            oldest = self._oldest()
            ran = step(self.now)
            assert oldest is None or any(one is oldest for one, _ in ran), (
                "the oldest with memory never waits"
            )
            for key, table in still.items():
                if self.now.get(*key) is not None:
                    gone = self.now.pool.gone(key)
                    assert list(self.now.pool.table(key))[gone : len(table)] == table[gone:]

    def _oldest(self) -> Sequence | None:
        """The first of those with memory; None where others than sequences that run have some, or one of higher
        priority is to have some."""
        if self.asked or self.quarantined or any(one.paused or one.locked for one in self.now):
            return None
        if any(one.priority > Priority.NORMAL and not one.admitted for one in self.now):
            return None
        return next((one for one in self.now if one.admitted), None)

    @invariant()
    def memory_is_taken_back_only_where_the_rule_says_so(self):
        if self.rule == "conservative":
            assert self.now.preemptions == 0

    def teardown(self):
        for one in self.now:
            one.paused = one.locked = one.copying = False
        for key in [*self.asked, *self.quarantined]:
            self.now.release(key)
        for _ in range(2000):
            if not list(self.now):
                break
            step(self.now)  # OutOfBlocks would fail here
        assert not list(self.now), "all fit, and have run to their end"
        counts = self.now.pool.counts()
        assert counts.free + counts.cached == counts.total


TestLaws = Laws.TestCase
TestLaws.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_prompts_are_cut_to_the_budget_and_end_in_order_of_arrival():
    now = scheduler(Budget(8, 4))
    for number in range(3):
        now.add(sequence(number, 10, 1))
    ran = []
    while list(now):
        batch = step(now)
        assert sum(tokens for _, tokens in batch) <= 8
        ran += [one.session for one, _ in batch]
    assert ran == sorted(ran)


def test_what_waits_for_memory_is_not_overtaken():
    now = scheduler(Budget(8, 4))
    now.add(sequence(0, 60, 20))
    now.add(sequence(1, 60, 20))
    now.add(sequence(2, 1, 1))
    while now.get("s0", Epoch(1, 1)):
        assert {one.session for one, _ in step(now)} == {"s0"}
    assert {one.session for one, _ in step(now)} == {"s1"}


def test_high_priority_goes_first_and_gives_its_memory_back_last():
    now = scheduler(Budget(8, 4), total=10, rule="aggressive")
    now.add(sequence(0, 15, 24))
    while not next(iter(now)).decoding:
        step(now)
    now.add(sequence(1, 12, 20))
    now.add(sequence(2, 12, 24, priority=Priority.HIGH))
    ended = []
    while here := {one.session for one in now}:
        step(now)
        ended += sorted(here - {one.session for one in now})
    assert now.preemptions and ended == ["s2", "s0", "s1"]


def test_its_outlook_is_of_what_waits_and_of_what_will_be_needed():
    now = scheduler(Budget(64, 4))
    assert now.outlook() == Outlook()
    now.add(sequence(0, 40, 40, priority=Priority.HIGH))
    now.add(sequence(1, 40, 40))
    now.add(sequence(2, 1, 1))
    step(now)
    assert [one.session for one in now if one.admitted] == ["s0"]
    outlook = now.outlook()
    assert (outlook.peak_blocks, outlook.head_blocks) == (80 // BLOCK, 80 // BLOCK)
    assert (outlook.high_priority, outlook.decoding, outlook.decode_tokens) == (1, 1, 40)


def test_blocks_that_several_hold_are_expected_once():
    now = scheduler(Budget(64, 4), total=60)
    now.add(sequence(0, 40, 20, like=0))
    step(now)
    alone = now.outlook().peak_blocks
    now.add(sequence(1, 40, 20, like=0))
    step(now)
    assert now.outlook().peak_blocks == alone + 15 - 9


@pytest.mark.parametrize("budget", [4, 64])
def test_a_windowed_sequence_holds_what_a_token_sees_and_a_chunk(budget):
    now = scheduler(Budget(budget, 4), total=6, span=2)
    one = sequence(0, 60, 20)
    now.add(one)
    prefilled = []
    while list(now):
        ((_, tokens),) = step(now)
        prefilled += [tokens] if tokens > 1 else []
        held = now.pool.counts().held
        assert held <= 3, "two full blocks, and one that is not"
    assert sum(prefilled) == 60 and max(prefilled) <= 6 * BLOCK and len(prefilled) >= 60 // min(budget, 24)


def test_windowed_sequences_share_memory_that_none_of_them_fits_into_whole():
    now = scheduler(Budget(8, 4), total=14, rule="conservative", span=2)
    for number in range(4):
        now.add(sequence(number, 8, 70))
    together = 0
    while list(now):
        together = max(together, len(step(now)))
    assert together == 4 and now.preemptions == 0


def test_a_sequence_that_can_never_fit_holds_nobody_back():
    now = scheduler(Budget(8, 4), total=4)
    now.add(sequence(0, 60, 20))
    now.add(sequence(1, 8, 8))
    assert {one.session for one, _ in step(now)} == {"s1"}


def test_a_prompt_that_fills_memory_exactly_runs():
    now = scheduler(Budget(16, 0), total=4)
    now.add(sequence(0, 16, 50))
    [(one, tokens)] = step(now)
    assert (tokens, one.pending, now.next_batch()) == (16, 1, []), "it waits to be taken elsewhere"


def test_a_lease_needs_a_free_slot():
    now = scheduler(Budget(0, 2))
    keys = [LeaseKey(f"s{number}", Epoch(1, 2)) for number in range(3)]
    assert [now.lease(key, 2, Size(4, 8), Context((1,) * 4), []) for key in keys] == [0, 0, None]
    now.quarantine(keys[0])  # its blocks serve nobody, its slot does
    assert now.lease(keys[2], 2, Size(4, 8), Context((1,) * 4), []) == 0
    assert scheduler(Budget(8, 0)).lease(keys[0], 1, Size(2, 4), Context((1, 1)), []) is None, (
        "nothing decodes here"
    )


def decoded(now: Scheduler) -> list[str]:
    """Run a step; whom it brought one token further past its prompt."""
    was = {one.session: one.decoding for one in now}
    return [one.session for one, _ in step(now) if was[one.session]]


def test_a_request_that_is_recovered_here_takes_a_slot_or_waits_for_one_in_its_turn():
    now = scheduler(Budget(20, 2), total=100)
    for number, tokens in enumerate((4, 9, 6, 6)):
        now.add(sequence(number, 4, tokens))
    ran = []
    while list(now):
        ran.append(decoded(now))
        assert len(ran[-1]) <= 2
        assert (now.lease(LeaseKey("new", Epoch(1, 2)), 1, Size(2, 4), Context((1, 1)), []) == 0) is (
            len(list(now)) < 2
        )
        now.release(LeaseKey("new", Epoch(1, 2)))
    alone = [session for number, session in enumerate(sum(ran, [])) if session not in sum(ran, [])[:number]]
    assert alone == ["s0", "s1", "s2", "s3"], "in order of arrival"


def test_what_is_prefilled_to_stay_counts_before_it_decodes_and_what_leaves_does_not():
    key = LeaseKey("new", Epoch(1, 2))
    for leaves in (True, False):
        now = scheduler(Budget(2, 1))
        now.add(sequence(0, 8, 8))
        next(iter(now)).copying = leaves
        step(now)
        assert (now.lease(key, 1, Size(2, 4), Context((1, 1)), []) == 0) is leaves


def test_what_can_never_fit_takes_no_slot():
    now = scheduler(Budget(8, 1), total=4)
    now.add(sequence(0, 60, 20))
    step(now)
    assert now.lease(LeaseKey("new", Epoch(1, 2)), 1, Size(2, 4), Context((1, 1)), []) == 0


def test_a_sequence_under_a_new_epoch_keeps_its_turn():
    now = scheduler(Budget(20, 1), total=100)
    for number in range(2):
        now.add(sequence(number, 4, 8))
    step(now)
    now.rename(next(iter(now)), Epoch(1, 9))
    assert decoded(now) == ["s0"]


def test_a_paused_sequence_keeps_its_blocks_and_runs_in_no_step():
    now = scheduler(Budget(8, 4))
    now.add(sequence(0, 4, 8))
    step(now)
    one = now.get("s0", Epoch(1, 1))
    assert one is not None
    one.paused = True
    held = now.pool.counts().held
    assert step(now) == [] and now.pool.counts().held == held


def test_a_sequence_under_a_new_epoch_keeps_its_blocks():
    now = scheduler(Budget(8, 4))
    now.add(sequence(0, 4, 8))
    step(now)
    [one] = now
    table = list(now.pool.table(one.key))
    now.rename(one, Epoch(1, 9))
    assert now.get("s0", Epoch(1, 1)) is None and now.get("s0", Epoch(1, 9)) is one
    assert list(now.pool.table(one.key)) == table


def test_an_epoch_is_queued_once():
    now = scheduler(Budget(8, 4))
    now.add(sequence(0, 4, 8))
    with pytest.raises(AssertionError):
        now.add(sequence(0, 4, 8))


def finish(now: Scheduler) -> list[tuple[str, int]]:
    """Run all there is to its end; what ran, as (session, tokens)."""
    ran = []
    while list(now):
        ran += [(one.session, tokens) for one, tokens in step(now)]
    return ran


def test_what_was_computed_is_not_computed_again():
    now = scheduler(Budget(64, 4))
    now.add(sequence(0, 40, 2))
    assert finish(now) == [("s0", 40), ("s0", 1)]
    now.add(sequence(1, 40, 1, like=0))
    assert finish(now) == [("s1", 4)], "all but the last block, whose last token must run"
    assert (now.kv.asked_tokens, now.kv.hit_tokens) == (80, 36)


def test_output_is_cached_like_prompts():
    now = scheduler(Budget(64, 4))
    first = sequence(0, 8, 9)
    now.add(first)
    finish(now)
    turn = Context(tuple(first.tokens), (), SamplingParams(max_tokens=1))
    now.add(Sequence.begin("next", Epoch(1, 1), turn, CONTEXT))
    assert finish(now) == [("next", 1)]


def test_tenants_share_nothing():
    now = scheduler(Budget(64, 4))
    now.add(sequence(0, 40, 1, salt="a"))
    finish(now)
    now.add(sequence(1, 40, 1, like=0, salt="b"))
    now.add(sequence(2, 40, 1, like=0))
    assert sum(tokens for _, tokens in finish(now)) == 80 and now.kv.hit_tokens == 0


def test_equal_prompts_that_come_together_are_computed_once():
    now = scheduler(Budget(16, 8))
    for number in range(4):
        now.add(sequence(number, 41, 1, like=0))
    ran = finish(now)
    assert sum(tokens for _, tokens in ran) == 41 + 3
    assert ran[:3] == [("s0", 16), ("s0", 16), ("s0", 9)]


def test_nothing_waits_for_others_or_is_found_where_caching_is_off():
    now = scheduler(Budget(64, 8), caches=False)
    for number in range(2):
        now.add(sequence(number, 20, 1, like=0))
    assert [tokens for _, tokens in step(now)] == [20, 20]
    now.add(sequence(2, 20, 1, like=0))
    assert finish(now) == [("s2", 20)]


def test_a_sequence_that_arrives_is_told_which_blocks_are_here_and_shares_them():
    now = scheduler(Budget(64, 4))
    now.add(sequence(0, 40, 1))
    finish(now)
    context = Context(tuple(range(40)), (77,), SamplingParams(max_tokens=9))
    key, names = LeaseKey("s", Epoch(1, 2)), now.kv.names_of(context)
    assert now.lease(key, 12, Size(41, 49), context, names) == 10
    counts = now.pool.counts()
    assert (counts.held, counts.leased, counts.cached) == (10, 2, 0)
    now.quarantine(key)
    assert now.pool.counts().quarantined == 2, "what its writer may touch"
    now.release(key)
    assert now.pool.counts().cached == 10
    assert now.lease(key, 12, Size(41, 49), context, names) == 10
    now.adopt(Sequence.adopt(key, context, Commit(1, (), 40), CONTEXT, names=names))
    assert now.pool.counts().held == 12


def test_a_next_turn_finds_what_was_asked_to_be_kept():
    now = scheduler(Budget(64, 4), total=12)
    now.add(sequence(0, 16, 1, cache_ttl_s=5.0))
    finish(now)
    now.add(sequence(1, 16, 1))
    finish(now)
    assert now.pool.counts().pinned == 4
    now.add(sequence(2, 30, 1))
    finish(now)
    assert len(now.pool.find(now.kv.names_of(Context(tuple(range(17)))))) == 4
    now.pool.expire(5.0)
    assert now.pool.counts().pinned == 0


def test_a_target_cuts_prompts_beside_decodes_alone_and_starves_none():
    free = Piece(base_s=0.0, per_token_s=0.001, per_chunk_work_s=0.0, per_context_token_s=0.0)
    law = Law(split_tokens=1, below=free, above=free)
    target = Target(StepCost(prefill=law, decode=law), itl_s=0.0095)
    now = scheduler(Budget(20, 4), total=100, target=target)
    now.add(sequence(0, 20, 40))
    assert [tokens for _, tokens in step(now)] == [20], "nothing decodes yet"
    now.add(sequence(1, 24, 4))
    assert [tokens for _, tokens in step(now)] == [1, 8], "nine tokens take 9 ms, ten 10"
    slow = scheduler(Budget(20, 4), total=100, target=Target(target.cost, itl_s=0.0001))
    slow.add(sequence(0, 20, 40))
    slow.add(sequence(1, 24, 4))
    assert [tokens for _, tokens in step(slow)] == [20]
    assert [tokens for _, tokens in step(slow)] == [1, BLOCK]


def test_a_prompt_that_waits_for_its_turn_is_counted_once():
    now = scheduler(Budget(4, 4), total=100)
    for number in range(3):
        now.add(sequence(number, 12, 1))
    while list(now):
        step(now)
    assert now.kv.asked_tokens == 36
