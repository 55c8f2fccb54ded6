"""What an operator asks and does not get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import grpc


@dataclass
class Refused(Exception):
    """The call is refused with this code and sentence."""

    code: grpc.StatusCode
    text: str


def refuse(code: grpc.StatusCode, text: str) -> NoReturn:
    raise Refused(code, text)
