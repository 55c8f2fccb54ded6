"""Dispatch by prediction: of all pairs of instances, the one by which the output is expected to end first."""

from __future__ import annotations

from collections.abc import Sequence

from . import forecast
from .cost import CostModel
from .forecast import queued_tokens
from .rules import Asked, Pair, least, slots_taken
from .state import InstanceView

OUTPUT_TOKENS = 128
"""Of an output of which nothing is known but its limit."""

Rank = tuple[bool, float]
"""Whether the request would have to wait for memory or a slot, and seconds to the end of its output."""


class Prediction:
    """Times of one request: to its first token, what a handover adds to that, and the steps of the output."""

    def __init__(self, asked: Asked, cost: CostModel, itl_target_s: float):
        self._asked = asked
        self._cost = cost
        self._itl_target_s = itl_target_s
        limit, expected = asked.request.max_new_tokens, asked.request.expected_tokens
        self._output = min(limit, OUTPUT_TOKENS if expected is None else expected)

    def pick(
        self, prefills: Sequence[InstanceView], decodes: Sequence[InstanceView], others: bool
    ) -> Pair | None:
        """The best pair; one that decodes prefills where that is faster and harms nobody, or no `others` do.

        None where there is none: those that prefill decode too, and others decode, or wait for others is better.
        """
        alone = [view for view in prefills if not view.may_decode]
        ranked = [
            (self._here(view, chunk), (view, view))
            for view in decodes
            if view in prefills and (chunk := self._chunk(view, others))
        ]
        if alone:
            ranked.append(self._apart(alone, decodes))
        if not ranked:
            return None
        best = min(rank for rank, _ in ranked)
        equals = sorted((pair for rank, pair in ranked if rank == best), key=lambda pair: pair[0].key)
        return equals[self._asked.seed % len(equals)]

    def _chunk(self, view: InstanceView, others: bool) -> int:
        """Prompt tokens that it may take in a step: what harms nobody, where `others` could do it instead."""
        if not others:
            return view.load.prefill_tokens
        return forecast.harmless_chunk(view.load, self._asked.given(view), self._itl_target_s, self._cost)

    def _here(self, view: InstanceView, chunk: int) -> Rank:
        return self._waits(view, decodes=True), self._first_s(view, chunk) + self._output_s(view)

    def _apart(self, prefills: Sequence[InstanceView], decodes: Sequence[InstanceView]) -> tuple[Rank, Pair]:
        """The first token comes from the one; whom it hands over to makes the rest."""

        def first(view: InstanceView) -> Rank:
            return self._waits(view, decodes=False), self._first_s(view, view.load.prefill_tokens)

        prefill = least(prefills, first, self._asked.seed)
        waits, first_s = first(prefill)

        def rest(view: InstanceView) -> Rank:
            handover_s = self._handover_s(prefill, view, first_s)
            return self._waits(view, decodes=True), handover_s + self._output_s(view)

        decode = least(decodes, rest, self._asked.seed)
        waits_there, rest_s = rest(decode)
        return (waits or waits_there, first_s + rest_s), (prefill, decode)

    def _waits(self, view: InstanceView, decodes: bool) -> bool:
        """Whether it would have to wait for memory or a slot."""
        load, given = view.load, self._asked.given(view)
        tokens = self._asked.request.prompt_tokens + (self._output if decodes else 0)
        blocks = load.needed_blocks + load.head_blocks + given.blocks + load.blocks_of(tokens)
        return (decodes and slots_taken(self._asked, view)) or blocks > load.total_blocks

    def _first_s(self, view: InstanceView, chunk: int) -> float:
        ahead = queued_tokens(view.load, self._asked.given(view))
        prefix = self._asked.request.prefix(view.key)
        tokens = self._asked.request.prompt_tokens - prefix
        return forecast.prefill_s(view.load, ahead, tokens, prefix, chunk, self._cost)

    def _handover_s(self, source: InstanceView, to: InstanceView, first_s: float) -> float:
        """What is not copied while the prompt is computed, at least its last chunk; and what is prefilled there, which
        stalls what is decoded."""
        lacking = self._asked.request.prompt_tokens - self._asked.request.prefix(to.key)
        last = min(lacking, source.load.prefill_tokens)
        whole_s, last_s = (
            self._cost.between_s(source.address, to.address, tokens) for tokens in (lacking, last)
        )
        return max(whole_s - first_s, last_s) + forecast.queue_s_of(
            to.load, self._asked.given(to), self._cost
        )

    def _output_s(self, view: InstanceView) -> float:
        tokens = self._asked.request.prompt_tokens + self._output // 2
        return self._output * forecast.decode_s(view.load, self._asked.given(view), tokens, self._cost)
