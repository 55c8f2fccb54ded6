"""What one forward pass is asked to do. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..handover.values import Logprobs, SamplingParams
from .tally import Tally


@dataclass(frozen=True, slots=True)
class Shaping:
    """What changes a row's logits before the draw: a function of the ids so far and of the parameters alone."""

    params: SamplingParams
    tally: Tally | None = None
    """The tokens so far, where penalties look at them."""
    barred: tuple[int, ...] = ()
    """Tokens that may not come now."""
    allowed: bytes | None = None
    """Where a grammar rules: the only tokens that may come, a bit each, lowest first."""


class SampleSpec(NamedTuple):
    """How the token after an item's last one is chosen."""

    temperature: float
    """0 is greedy."""
    seed: int
    choice: int
    """Index among the request's `n` choices."""
    position: int
    """Index of the token to be generated, from 0."""
    shaping: Shaping | None = None
    """None where the logits stay as they are, which then costs nothing."""


@dataclass(slots=True)
class Logbook:
    """Log-probabilities that are wanted of a step. The step writes them into it, beside the tokens that it returns."""

    known: Sequence[int] = ()
    """The tokens that follow the first of those fed, one each: parts of a prompt."""
    known_top: int = 0
    """How many alternatives to each of these."""
    drawn_top: int | None = None
    """How many alternatives to the token that is sampled; None where nothing is to be told of it."""
    of_known: tuple[Logprobs, ...] = ()
    of_drawn: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class StepItem:
    """One sequence's share of a step: a chunk of its prompt, or its last token."""

    tokens: Sequence[int]
    """The ids to feed, at least one."""
    start: int
    """Position of the first of them; the KV of all positions before it is in the cache already."""
    block_table: Sequence[int]
    """Block ids that cover every position up to the last one fed."""
    sample: SampleSpec | None = None
    """None where the next token is known or not wanted."""
    log: Logbook | None = None
    """None where no log-probabilities are wanted, which then cost nothing."""
    follows: int | None = None
    """Where the token to feed is still being drawn: the index of the item that draws it, among those of the step
    before. The one of `tokens` then stands for it."""
