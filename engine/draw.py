"""Random draws that depend on what is drawn, never on when or beside whom."""

import hashlib
import struct

_KEY = b"penstock-draw-1"
_MANTISSA_BITS = 53


def uniform(seed: int, choice: int, position: int) -> float:
    """A number in [0, 1), a pure function of its arguments.

    `seed` is the request's (any integer; its lowest 64 bits count), `choice` the index among the request's `n`
    choices, `position` the index of the generated token, from 0. Counter-based: any draw is made without the
    others, so a handover, a batch or a resumption cannot disturb it.
    """
    triple = struct.pack("<QQQ", seed & 0xFFFFFFFFFFFFFFFF, choice, position)
    digest = hashlib.blake2b(triple, digest_size=8, key=_KEY).digest()
    return (int.from_bytes(digest, "little") >> (64 - _MANTISSA_BITS)) / (1 << _MANTISSA_BITS)
