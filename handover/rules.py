"""The rules and fences of the protocol, each one named guard. The machines ask here and nowhere else.

Written as functions so that an exploration can take any one of them out and must then find a breach.
"""

from __future__ import annotations

from .values import FOREVER, Commit, Epoch, TokenRecord


def settled_n(current: int, allotted: int) -> int:
    """Rule 1: recovery, cancel and settlement go above every n ever allotted, those lent to destinations included."""
    assert current <= allotted
    return allotted + 1


def accepts(current: Epoch, epoch: Epoch) -> bool:
    """Rule 2: a router believes its current epoch and higher ones of the attempt."""
    return epoch >= current and epoch.attempt == current.attempt


def bound(current: Epoch, closed: bool) -> Epoch:
    """Rule 2: what an answer to an old message voids: never the current epoch of an open session."""
    if closed or current.n:
        return Epoch(current.attempt, FOREVER if closed else current.n - 1)
    return Epoch(current.attempt - 1, FOREVER)  # nothing of this attempt was allotted yet


def restated_from(seen: int, _made: int) -> int:
    """Rule 3: a commit, and an owner's first word, begin at the router's acknowledged index."""
    return seen


def may_forget(seen: int, made: int) -> bool:
    """Rule 3: an owner keeps its records, and its session after the last token, until the router has seen them."""
    return seen >= made


def may_run_again(commit_may_have_left: bool) -> bool:
    """Rule 4: a source that may have sent a commit never runs under that epoch again."""
    return not commit_may_have_left


def fresh(mark: Epoch | None, epoch: Epoch) -> bool:
    """Rule 5: an instance starts, leases or resumes an epoch at most once, and never one below the mark."""
    return mark is None or epoch > mark


def takes(expired: bool) -> bool:
    """Rule 5: stages and their commit are valid only against an unexpired lease, whose epoch is the mark.

    A lease ends where the mark rises above it, so that none below the mark is unexpired.
    """
    return not expired


def complete(commit: Commit | None, end: int, have: int, arrived: frozenset[tuple[int, int]]) -> bool:
    """Rule 5: a destination adopts only when the commit and every block of every stage have arrived.

    `arrived` holds (first, count) of disjoint stages; the final one ends at block `end`.
    """
    return commit is not None and have + sum(count for _, count in arrived) == end


def copied_from(have: int) -> int:
    """A source sends only what the destination lacks: the `have` leading blocks there are others' as well."""
    return have


def may_answer_stop(writing: bool) -> bool:
    """Rule 6: `stop` is acknowledged, and sent by a source, only when no write can follow."""
    return not writing


def believes_seen(router: str, attempt: int, seen_router: str, seen_attempt: int) -> bool:
    """`seen` counts only from the owner's own router and attempt."""
    return router == seen_router and attempt == seen_attempt


def recovers_on_silence() -> bool:
    """Rule 7: a session that nobody speaks for is re-prefilled, whether or not its instance lives."""
    return True


def drops_for_silent_router() -> bool:
    """Rule 7: KV is soft state; an instance drops a sequence whose router has been silent for the grace time."""
    return True


def may_release(one_sided: bool, writer_fenced: bool) -> bool:
    """Rule 8, second fence: what a live one-sided writer may touch is quarantined until it is fenced."""
    return writer_fenced or not one_sided


def may_free_read(writing: bool) -> bool:
    """First fence: a block that a transfer is reading is not freed at the source."""
    return not writing


def kept_from(firsts: list[int]) -> int | None:
    """First fence, where a sliding window passes over blocks of a sequence that goes on: it keeps those behind the
    first that a transfer reads or is still to send."""
    return min(firsts, default=None)


def may_free_stepped(launched: bool) -> bool:
    """Third fence: a block that a launched step may write is neither freed nor leased until that step completes."""
    return not launched


def may_copy_last(launched: bool) -> bool:
    """Third fence: the final stage is copied after the last step launched with the sequence."""
    return not launched


def unseen(records: tuple[TokenRecord, ...], first: int, index: int) -> tuple[TokenRecord, ...]:
    """The part of `records`, which begin at index `first`, that lies at or after `index`."""
    return records[max(0, index - first) :]
