"""Text to token ids, and ids to text as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer as Encoder

from .chat import ChatTemplate, read_chat_template

LONG_TEXT = 4096
"""Characters from which on a prompt is encoded in a thread, so that streams do not wait for it."""

REPLACEMENT = "\ufffd"
LONGEST_HELD = 64
"""Tokens that are held back at most: beyond, the bytes are no text."""


class Tokenizer:
    """A checkpoint's `tokenizer.json`, special tokens added as it says, and what lies beside it."""

    chat: ChatTemplate | None
    """How a chat becomes a text, where the model is made for chats."""
    longest_token: int
    """In characters."""
    largest_id: int

    def __init__(self, path: Path):
        try:
            self._encoder = Encoder.from_file(str(path))
        except Exception as error:  # noqa: BLE001  the library raises plain Exception for a file that it cannot read
            raise ValueError(f"{path} is no tokenizer: {error}") from None
        self._encoder.no_padding()
        self._encoder.no_truncation()
        known = self._encoder.get_vocab()
        self.longest_token = max(map(len, known))
        self.largest_id = max(known.values())
        self.chat = read_chat_template(path.parent)

    async def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        """`special_tokens` adds those that a prompt begins or ends with; a chat's text has its own."""
        encode = partial(self._encoder.encode, text, add_special_tokens=special_tokens)
        return encode().ids if len(text) < LONG_TEXT else (await asyncio.to_thread(encode)).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out."""
        return self._encoder.decode(ids, skip_special_tokens=True)

    async def read(self, ids: Sequence[int]) -> str:
        """`decode`, of as many as may be."""
        return await asyncio.to_thread(self.decode, ids)

    def stream(self, received: Sequence[int] = ()) -> TextStream:
        """The text of an output as it grows; what belongs to `received` was sent before."""
        return TextStream(self, received)


class TextStream:
    """Detokenizes one output, token by token, so that its state depends on the ids alone and not on how they came.

    Never splits a character: bytes that may go on are held back until they do, or the end. (`DecodeStream` of the
    library does the same for byte-level tokenizers, but raises on byte-fallback ones where bytes are no UTF-8.)
    """

    def __init__(self, tokenizer: Tokenizer, received: Sequence[int]):
        self._decode = tokenizer.decode
        self._window: list[int] = []
        """Ids whose text is being made: `_shown` of it was given out already and is there as context."""
        self._shown = ""
        self._new: list[int] = []
        self.add(received)

    def add(self, ids: Sequence[int]) -> str:
        """The text that these further tokens complete."""
        return "".join(map(self._step, ids))

    def flush(self) -> str:
        """What is held back at the end; incomplete bytes become replacement characters."""
        return self._take(self._decode([*self._window, *self._new]))

    def _step(self, id: int) -> str:
        self._new.append(id)
        text = self._decode([*self._window, *self._new])
        may_go_on = text.endswith(REPLACEMENT) and len(self._new) < LONGEST_HELD
        return "" if may_go_on or len(text) <= len(self._shown) else self._take(text)

    def _take(self, text: str) -> str:
        piece = text[len(self._shown) :]
        self._window, self._new = self._new, []
        self._shown = self._decode(self._window)
        return piece
