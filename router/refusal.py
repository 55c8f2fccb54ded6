"""What a caller is told when a request ends in an error: a code, a sentence, and the field that is at fault."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "penstock.inference.v1"
LEAST_RETRY_S = 0.1
FINAL = "FINAL"
"""Reason of an `ErrorInfo`; see `Generate` in inference.proto."""


class Refused(Exception):
    """The request ends here. `field` is the path of the field at fault in the request, if one is.

    `final` tells a verdict of UNAVAILABLE from the loss of a router, after which a client resumes. Above 0, `retry_s`
    is when another attempt may fare better.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        field: str = "",
        final: bool = False,
        retry_s: float = 0.0,
    ):
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.final = final
        self.retry_s = retry_s

    def details(self) -> bytes:
        """A serialized `google.rpc.Status`: a `BadRequest` names the field, an `ErrorInfo` tells a verdict, a
        `RetryInfo` when to come back."""
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message)
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.final:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=FINAL, domain=DOMAIN))
        if self.retry_s > 0:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(round(self.retry_s * 1e9))
            status.details.add().Pack(retry)
        return status.SerializeToString()

    async def abort(self, context: Any) -> NoReturn:
        """End the call with this error."""
        await context.abort(self.code, self.message, trailing_metadata=((DETAILS_KEY, self.details()),))
        raise AssertionError("abort returned")


def invalid(field: str, message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message, field)


def exhausted(field: str, message: str) -> Refused:
    """There is no place or time for it now."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message, field)


def overloaded(message: str, retry_s: float) -> Refused:
    """The cluster has too much to do now."""
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message, retry_s=max(retry_s, LEAST_RETRY_S))


def unserved(message: str) -> Refused:
    """The cluster cannot serve it now, and another attempt would fare no better."""
    return Refused(grpc.StatusCode.UNAVAILABLE, message, final=True)
