"""One choice's output as its client gets it: tokens with their text, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..handover.values import End, Logprobs
from .fleet import Delta
from .stops import StopStrings
from .tokenizer import Tokenizer
from .wire import Call


@dataclass(frozen=True, slots=True)
class Piece:
    """What the client hears at once of one choice."""

    first_index: int
    token_ids: tuple[int, ...]
    text: str
    instance: str
    logprobs: tuple[Logprobs, ...]
    """One for each token, where they were asked for."""
    prompt_logprobs: tuple[Logprobs, ...] | None
    """None where nothing is told of the prompt now."""


class Output:
    """Turns tokens into text and looks for stop strings.

    All its state follows from the ids: what a client received from an earlier attempt is replayed, and its text is not
    given out again.
    """

    def __init__(self, call: Call, end_tokens: Sequence[int], tokenizer: Tokenizer | None):
        self.call = call
        self.tokens = 0
        """How many the client has."""
        self.end: End | None = None
        self._text = tokenizer.stream() if tokenizer else None
        self._stops = StopStrings(call.stop)
        self._take(call.received)
        if self.end is None:
            self.end = call.ended(end_tokens)

    def take(self, delta: Delta) -> Piece:
        """What comes of a delta: its tokens up to a stop string's last, and the text that is certain now."""
        assert delta.first_index == self.tokens and self.end is None
        used, text = self._take(delta.token_ids)
        if self.end is None and delta.end is not None:
            self.end = delta.end
            text += self._flush()
        told = self._tells_prompt and delta.first_index == 0
        return Piece(
            first_index=delta.first_index,
            token_ids=delta.token_ids[:used],
            text=text,
            instance=delta.instance,
            logprobs=delta.logprobs[:used],
            prompt_logprobs=delta.prompt_logprobs if told else None,
        )

    @property
    def _tells_prompt(self) -> bool:
        return self.call.echo or self.call.params.prompt_logprobs is not None

    def _take(self, ids: Sequence[int]) -> tuple[int, str]:
        """How many of the tokens come before the output is over, and their text."""
        if self._text is None:
            self.tokens += len(ids)
            return len(ids), ""
        pieces: list[str] = []
        for used, id in enumerate(ids, 1):
            self.tokens += 1
            early = self.tokens <= self.call.params.min_tokens
            pieces.append(self._stops.feed(self._text.add((id,)), early))
            if self._stops.found:
                self.end = End.STOP
                return used, "".join(pieces)
        return len(ids), "".join(pieces)

    def _flush(self) -> str:
        """Text that was held back, now that no token follows."""
        if self._text is None:
            return ""
        text = self._stops.feed(self._text.flush())
        if self._stops.found:
            self.end = End.STOP
            return text
        return text + self._stops.rest()
