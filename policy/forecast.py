"""What is expected of a request on an instance: when its first token comes, and how fast the others follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .batching import prefill_budget
from .cost import CostModel, Piece, StepShape
from .state import InstanceView, Key, LoadView


@dataclass(frozen=True, slots=True)
class Given:
    """What an instance was given beside that its load shows."""

    sequences: int = 0
    tokens: int = 0
    """Prompt tokens to prefill."""
    blocks: int = 0


NOTHING = Given()


SHORTEST_S = 0.005
LAG_SHARE = 0.9
LATE_SHARE = 0.98
"""Of the first tokens that are foreseen when a request comes: it is taken or refused by that."""
LAG_STEP = 0.1
MOST_LAG = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the instances that prefill take prompts; 0 where that is not known."""

    queue_s: float = 0.0
    """Seconds of prompts before the one that has the fewest."""
    tokens_per_s: float = 0.0
    """Of all together."""
    alone_per_s: float = 0.0
    """Of the mean one."""

    def prefill_s(self, tokens: int) -> float:
        return tokens / self.alone_per_s if self.alone_per_s else 0.0


def pace(
    views: Sequence[InstanceView], given_to: Mapping[Key, Given], cost: CostModel | None, lag: float = 1.0
) -> Pace:
    """Of those that do nothing but prefill, or else of all that prefill. All takes `lag` times as long."""
    able = [view for view in views if view.may_prefill]
    able = [view for view in able if not view.may_decode] or able
    if not able:
        return Pace()
    queue_s = min(queue_s_of(view.load, given_to.get(view.key, NOTHING), cost) for view in able)
    rates = [
        view.load.prefill_tokens / _chunk_s(view.load, cost) for view in able if _chunk_s(view.load, cost)
    ]
    return Pace(lag * queue_s, sum(rates) / lag, sum(rates) / max(1, len(rates)) / lag)


def _chunk_s(load: LoadView, cost: CostModel | None) -> float:
    if cost is None:
        return load.step_s
    return prefill_s(load, 0, load.prefill_tokens, 0, load.prefill_tokens, cost)


def queued_tokens(load: LoadView, given: Given) -> int:
    return load.queued_tokens + given.tokens


def prefill_s(load: LoadView, ahead: int, tokens: int, prefix: int, chunk: int, cost: CostModel) -> float:
    """Seconds until `tokens` behind a cached `prefix` are computed, and those `ahead` of them, beside all decodes.

    Steps take `chunk` tokens. Of what is ahead only the number is known: it is taken for chunks without a prefix.
    """
    total = ahead + tokens
    law = cost.step.prefill
    piece = law.piece(min(chunk, total) + load.decoding)
    work = ahead * min(chunk, ahead) + tokens * (tokens + 2 * prefix)
    steps = -(-total // chunk)
    return steps * _decodes_s(piece, load) + total * piece.per_token_s + work * piece.per_chunk_work_s


def _decodes_s(piece: Piece, load: LoadView) -> float:
    """Of a step before any prompt is in it."""
    return piece.base_s + load.decoding * piece.per_token_s + load.decode_tokens * piece.per_context_token_s


def queue_s_of(load: LoadView, given: Given, cost: CostModel | None) -> float:
    """Seconds of prompts before the instance; by its recent steps where nobody says what steps cost."""
    queued = queued_tokens(load, given)
    if not (queued and load.prefill_tokens):
        return 0.0
    if cost is None:
        return queued / load.prefill_tokens * load.step_s
    return prefill_s(load, queued, 0, 0, load.prefill_tokens, cost)


def first_s(load: LoadView, given: Given, tokens: int, prefix: int, cost: CostModel | None) -> float:
    """Seconds to the first token of a prompt; by recent steps where nobody says what steps cost."""
    ahead = queued_tokens(load, given)
    if cost is None:
        return (ahead + tokens) / load.prefill_tokens * load.step_s
    return prefill_s(load, ahead, tokens, prefix, load.prefill_tokens, cost)


def lag(before: float, expected_s: float, took_s: float, share: float = LAG_SHARE) -> float:
    """How many times as long as is expected that `share` of first tokens take at most; machines have other work too.

    It rises by `share` of a step where one took longer, and falls by the rest where one did not. What is expected
    within `SHORTEST_S` tells nothing.
    """
    if expected_s < SHORTEST_S:
        return before
    step = share if took_s > before * expected_s else share - 1
    return min(max(before * math.exp(LAG_STEP * step), 1 / MOST_LAG), MOST_LAG)


def steps_lag(load: LoadView, cost: CostModel) -> float:
    """How many times as long as is expected the steps of an instance lately took; at least once."""
    if not load.decoding:
        return 1.0
    running = StepShape(decodes=load.decoding, context_tokens=load.decode_tokens)
    return max(1.0, load.step_s / cost.step.predict(running))


def next_token_s(load: LoadView, given: Given, tokens: int, cost: CostModel | None) -> float:
    """Seconds of a step that decodes one more sequence of `tokens`, on a machine that is as slow as it lately was."""
    if cost is None:
        return load.step_s if load.decoding else 0.0
    return steps_lag(load, cost) * decode_s(load, given, tokens, cost)


def decode_s(load: LoadView, given: Given, tokens: int, cost: CostModel) -> float:
    """Seconds of a step that decodes one more sequence, of `tokens`."""
    context = load.decode_tokens + given.blocks * load.block_size + tokens
    return cost.step.predict(StepShape(decodes=load.decoding + given.sequences + 1, context_tokens=context))


def harmless_chunk(load: LoadView, given: Given, itl_s: float, cost: CostModel) -> int:
    """The longest chunk beside which what decodes meets the target; without one, 0 where anything does."""
    decodes = load.decoding + given.sequences
    if not decodes:
        return load.prefill_tokens
    if not itl_s:
        return 0
    context = load.decode_tokens + given.blocks * load.block_size
    running = StepShape(decodes=decodes, context_tokens=context)
    return prefill_budget(cost.step, running, itl_s, load.prefill_tokens)
