"""Views as they will be: with a sequence that has come, or without one that has left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import admission
from .admission import Need
from .state import InstanceView, LoadView, Priority, SequenceView


def joined(view: InstanceView, one: SequenceView) -> InstanceView:
    """The instance when it runs the sequence too."""
    return _running(view, (*view.sequences, replace(one, waits=False) if one.waits else one))


def left(view: InstanceView, gone: SequenceView) -> InstanceView:
    """The instance without one of its `sequences`. Of one that waits its load tells no more than that it does."""
    others = tuple(one for one in view.sequences if one is not gone)
    if not gone.waits:
        return _running(view, others)
    load = view.load
    queued = max(0, load.queued_tokens - gone.tokens)
    first = first_waiting(view) is gone
    changed = replace(
        load,
        waiting=max(0, load.waiting - 1),
        queued_tokens=queued,
        head_blocks=0 if first else load.head_blocks,
    )
    return replace(view, load=changed, sequences=others)


def first_waiting(view: InstanceView) -> SequenceView | None:
    """Whose turn for memory it is, as far as is known: by priority, and then in the order given."""
    return max((one for one in view.sequences if one.waits), key=lambda one: one.priority, default=None)


def _running(view: InstanceView, sequences: tuple[SequenceView, ...]) -> InstanceView:
    """The view with these sequences in the place of those that it has."""
    load = view.load
    held = _held(sequences, load) - _held(view.sequences, load)
    peak = load.needed_blocks + peak_blocks(sequences, load) - peak_blocks(view.sequences, load)
    more = _count(sequences) - _count(view.sequences)
    changed = replace(
        load,
        free_blocks=load.free_blocks - held,
        held_blocks=load.held_blocks + held,
        peak_blocks=max(0, peak),
        running=load.running + more,
        decoding=load.decoding + more,
        decode_tokens=load.decode_tokens + _tokens(sequences) - _tokens(view.sequences),
        high_priority=load.high_priority + _high(sequences) - _high(view.sequences),
    )
    return replace(view, load=changed, sequences=sequences)


def peak_blocks(sequences: Iterable[SequenceView], load: LoadView) -> int:
    """What they are predicted to need together."""
    needs = [
        Need(one.tokens, one.remaining, one.tokens + one.remaining) for one in sequences if not one.waits
    ]
    if load.most_blocks:
        needs = [need.within(load.most_blocks * load.block_size) for need in needs]
    return admission.predicted(needs, load.block_size)


def _count(sequences: Iterable[SequenceView]) -> int:
    return sum(not one.waits for one in sequences)


def _held(sequences: Iterable[SequenceView], load: LoadView) -> int:
    return sum(load.blocks_of(one.tokens) for one in sequences if not one.waits)


def _tokens(sequences: Iterable[SequenceView]) -> int:
    return sum(one.tokens for one in sequences if not one.waits)


def _high(sequences: Iterable[SequenceView]) -> int:
    return sum(one.priority >= Priority.HIGH for one in sequences if not one.waits)
