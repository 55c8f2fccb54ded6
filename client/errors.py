"""What the cluster answers instead of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN, FINAL = "penstock.inference.v1", "FINAL"
"""Of the `ErrorInfo` that tells a router's own verdict; see `Generate` in inference.proto."""

LATE = "Deadline Exceeded"
"""All that gRPC itself says of a deadline that has passed."""


class PenstockError(Exception):
    """A call failed. `field` names the field of the request that is at fault, where one is.

    `final` is UNAVAILABLE as the router's own verdict, beside that of a router that was lost. Above 0, `retry_s` is
    after how many seconds the cluster may have time for it.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        field: str = "",
        final: bool = False,
        retry_s: float = 0.0,
    ):
        super().__init__(code, message, field)
        self.code = code
        self.message = message
        self.field = field
        self.final = final
        self.retry_s = retry_s

    def __str__(self) -> str:
        return f"{self.message} ({self.code.name})"


class InvalidRequest(PenstockError, ValueError):
    """The caller's argument is wrong (INVALID_ARGUMENT)."""


def from_rpc(error: grpc.RpcError, address: str, timeout_s: float | None = None) -> PenstockError:
    """The error of a call to the router at `address`; `timeout_s` is the deadline that it was given, if any."""
    call: Any = error  # sync and aio errors share these methods, but no public type that has them
    code, message = call.code(), call.details() or "the call failed"
    if code is grpc.StatusCode.UNAVAILABLE and _nobody_answers(message):
        message = f"no cluster answers at {address} (is it up? `penstock up` starts one): {message}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and message == LATE:
        message = _late(timeout_s)
    kind = InvalidRequest if code is grpc.StatusCode.INVALID_ARGUMENT else PenstockError
    details = _details(call.trailing_metadata())
    return kind(code, message, _field(details), _final(details), _retry_s(details))


def _late(timeout_s: float | None) -> str:
    if timeout_s is None:
        return "a part of the cluster did not answer in time: ask again"
    return (
        f"it was not done within {timeout_s:g} s, the call's deadline: a larger `timeout_s` gives it longer"
    )


def _nobody_answers(message: str) -> bool:
    """The text is gRPC's own and not the router's."""
    return "failed to connect" in message.lower() or "DNS" in message


def _details(metadata: Any) -> list[any_pb2.Any]:
    return [
        detail
        for key, value in metadata or ()
        if key == DETAILS_KEY
        for detail in status_pb2.Status.FromString(value).details
    ]


def _field(details: Sequence[any_pb2.Any]) -> str:
    for detail in details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad) and bad.field_violations:
            return bad.field_violations[0].field
    return ""


def _final(details: Sequence[any_pb2.Any]) -> bool:
    info = error_details_pb2.ErrorInfo()
    return any(detail.Unpack(info) and (info.domain, info.reason) == (DOMAIN, FINAL) for detail in details)


def _retry_s(details: Sequence[any_pb2.Any]) -> float:
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return 0.0
