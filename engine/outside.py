"""What an engine is given: the limits of its model and cache, and the threads around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from ..handover.frames import InstanceFrame
from ..handover.values import Address, Context, Incarnation, LeaseKey, PeerMessage, Stage, Window
from ..policy.state import blocks_for
from .host_tier import Swap

if TYPE_CHECKING:
    from .grammar import Constraint, Grammars  # its library is needed where a grammar is


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and its cache allow."""

    context: int
    """Tokens, prompt and output together."""
    ends: frozenset[int]
    block_size: int
    vocabulary: int
    """Token ids are below it."""
    grammars: Grammars | None = None
    """None where the model has no tokenizer."""

    def blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self.block_size)

    def constraint(self, context: Context) -> Constraint | None:
        """The state of the grammar that rules its output, after the output so far; None where none does."""
        grammar = context.params.grammar
        if not grammar:
            return None
        assert self.grammars is not None, "routers ask it only of models that have a tokenizer"
        return self.grammars.begin(grammar, context.emitted)

    def unfit(self, context: Context) -> str:
        """Why no sequence of this context can ever be begun; empty where one can. Routers let none of these through."""
        params, tokens = context.params, len(context.prompt) + len(context.emitted)
        biased = (token for token, _ in params.logit_bias)
        largest = max(chain(context.prompt, context.emitted, params.stop_token_ids, biased), default=0)
        if not context.prompt:
            return "the prompt is empty"
        if tokens >= self.context:
            return f"{tokens} tokens leave no room for output in a context of {self.context}"
        if largest >= self.vocabulary:
            return f"token {largest} is not below the vocabulary of {self.vocabulary}"
        if params.grammar and self.grammars is None:
            return "its output is to follow a grammar, and the model has no tokenizer"
        return ""


class Outside(Protocol):
    """What the engine asks of the threads around it. Every call returns at once."""

    def send(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        """Send these, in order."""
        ...

    def condemn(self, writer: Incarnation) -> None: ...

    def write_in_place(
        self,
        stage: Stage,
        window: Window | None,
        source_ids: Sequence[int],
        destination_ids: Sequence[int],
        urgent: bool,
    ) -> None:
        """Copy blocks into a peer's memory (None: it shares none); `Written` is posted when that has ended.

        `urgent` where a paused sequence waits for it; else it takes its time, so that steps do not feel it.
        """
        ...

    def give_up(self, lease: LeaseKey) -> None:
        """Nobody wants the copy under this lease any more; `Written` is posted all the same."""
        ...

    def send_blocks(self, stage: Stage, ids: Sequence[int], urgent: bool) -> None:
        """Send the header and the blocks; `Written` is posted when that has ended."""
        ...

    def receive_blocks(self, stage: Stage, ids: Sequence[int]) -> None:
        """Take the blocks that follow a header; `Received` is posted when that has ended."""
        ...

    def decline_blocks(self, stage: Stage) -> None:
        """Nobody wants the blocks that follow this header."""
        ...

    def close_receive(self, lease: LeaseKey) -> None: ...

    def swap(self, swap: Swap) -> None:
        """Copy blocks between the cache and host memory; `Swapped` is posted when that has ended."""
        ...

    def reaches(self, destination: Address) -> bool:
        """Whether the destination's memory may be written in place."""
        ...
