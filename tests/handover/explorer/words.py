"""Traces for people."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from penstock.handover.values import FOREVER, Address, Context, Epoch, Incarnation, LeaseKey, TokenRecord

from .tokens import Tokens

_DULL = {
    "session",
    "fingerprint",
    "layout",
    "size_bytes",
    "pair",
    "sequence",
    "window",
    "lease_s",
    "blocks",
}
_DULL |= {"router", "have", "one_sided", "mode", "block_ids"}


def words(value: Any, tokens: Tokens) -> str:
    """A label's part in few letters: epochs as attempt.n, incarnations as A0, tokens as index@maker."""
    match value:
        case Epoch(attempt, n):
            return f"{attempt}.{'inf' if n == FOREVER else n}"
        case Incarnation(instance, life):
            return f"{instance}{life}"
        case LeaseKey(_, epoch):
            return words(epoch, tokens)
        case Address(incarnation, _):
            return words(incarnation, tokens)
        case TokenRecord(token, end):
            return tokens.name(token) + ("!" if end else "")
        case Context(_, emitted):
            return f"{len(emitted)} told"
        case Enum():
            return value.name
        case tuple():
            return "[" + ", ".join(words(part, tokens) for part in value) + "]"
    if not is_dataclass(value):
        return str(value)
    parts = [
        f"{field.name}={words(getattr(value, field.name), tokens)}"
        for field in fields(value)
        if field.name not in _DULL and getattr(value, field.name) is not None
    ]
    return f"{type(value).__name__}({', '.join(parts)})"
