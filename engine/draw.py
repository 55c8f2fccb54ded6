"""Random draws that depend on what is drawn, never on when or beside whom."""

import hashlib
import struct

_KEY = b"penstock-draw-2"


def draw_key(seed: int, choice: int, position: int) -> int:
    """The 64-bit key of one draw, as a signed integer: a pure function of its arguments.

    `seed` is the request's (any integer; its lowest 64 bits count), `choice` the index among the request's `n`
    choices, `position` the index of the generated token, from 0. Counter-based: any draw is made without the
    others, so a handover, a batch or a resumption cannot disturb it.
    """
    triple = struct.pack("<QQQ", seed & 0xFFFFFFFFFFFFFFFF, choice, position)
    return int.from_bytes(hashlib.blake2b(triple, digest_size=8, key=_KEY).digest(), "little", signed=True)
