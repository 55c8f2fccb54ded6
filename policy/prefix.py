"""Names of blocks of tokens: a keyed hash chain, so that equal names mean equal tokens from the first one on.

The key comes from the model and the tenant: KV is never shared between two of either.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

NAME_BYTES = 32


def secret(fingerprint: str, salt: str) -> bytes:
    """The key of all chains of one model and one tenant."""
    parts = (part.encode() for part in (fingerprint, salt))
    framed = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return hashlib.blake2b(framed, digest_size=hashlib.blake2b.MAX_KEY_SIZE).digest()


def chain(
    key: bytes, tokens: Sequence[int], block_size: int, known: Sequence[bytes] = (), blocks: int | None = None
) -> list[bytes]:
    """The names of the first `blocks` blocks of `tokens` (default: of all full ones), `known` being the first of them.

    Each is made of the one before it and of its own tokens, under `key` of `secret`.
    """
    names = list(known)
    full = len(tokens) // block_size if blocks is None else blocks
    assert full * block_size <= len(tokens)
    form = struct.Struct(f"<{block_size}I")
    for first in range(len(names) * block_size, full * block_size, block_size):
        before = names[-1] if names else b""
        packed = form.pack(*tokens[first : first + block_size])
        names.append(hashlib.blake2b(before + packed, digest_size=NAME_BYTES, key=key).digest())
    return names
