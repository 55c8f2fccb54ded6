"""What the cluster answers instead of an answer."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"


class PenstockError(Exception):
    """A call failed. `field` names the field of the request that is at fault, where one is."""

    def __init__(self, code: grpc.StatusCode, message: str, field: str = ""):
        super().__init__(code, message, field)
        self.code = code
        self.message = message
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} ({self.code.name})"


class InvalidRequest(PenstockError, ValueError):
    """The caller's argument is wrong (INVALID_ARGUMENT)."""


def from_rpc(error: grpc.RpcError, address: str) -> PenstockError:
    """The error of a call to the router at `address`."""
    call: Any = error  # sync and aio errors share these methods, but no public type that has them
    code, message = call.code(), call.details() or "the call failed"
    if code is grpc.StatusCode.UNAVAILABLE and _nobody_answers(message):
        message = f"no cluster answers at {address} (is it up? `penstock up` starts one): {message}"
    kind = InvalidRequest if code is grpc.StatusCode.INVALID_ARGUMENT else PenstockError
    return kind(code, message, _field(call.trailing_metadata()))


def _nobody_answers(message: str) -> bool:
    """The text is gRPC's own and not the router's."""
    return "failed to connect" in message.lower() or "DNS" in message


def _field(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                bad = error_details_pb2.BadRequest()
                if detail.Unpack(bad) and bad.field_violations:
                    return bad.field_violations[0].field
    return ""
