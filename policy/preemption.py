"""What becomes of the KV of a sequence that gives its memory back: host memory keeps it, or it is computed again."""

from __future__ import annotations

from .cost import CostModel, StepShape


def swaps_out(tokens: int, new_tokens: int, cost: CostModel | None) -> bool:
    """Whether to copy `new_tokens` to host memory, and all of the `tokens` back later, rather than compute them again.

    Without prices copies are taken to be the cheaper.
    """
    if cost is None or not tokens:
        return bool(tokens)
    return cost.swap_s(new_tokens) + cost.swap_s(tokens) < _computed_s(tokens, 0, cost)


def fetches(tokens: int, prefix: int, cost: CostModel | None) -> bool:
    """Whether to copy `tokens` behind a `prefix` from host memory rather than compute them."""
    if cost is None or not tokens:
        return bool(tokens)
    return cost.swap_s(tokens) < _computed_s(tokens, prefix, cost)


def _computed_s(tokens: int, prefix: int, cost: CostModel) -> float:
    return cost.step.predict(StepShape.of([(tokens, prefix)]))
