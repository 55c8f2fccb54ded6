"""What a caller is told when a request ends in an error: a code, a sentence, and the field that is at fault."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "penstock.inference.v1"
FINAL = "FINAL"
"""Reason of an `ErrorInfo`; see `Generate` in inference.proto."""


class Refused(Exception):
    """The request ends here. `field` is the path of the field at fault in the request, if one is.

    `final` tells a verdict of UNAVAILABLE from the loss of a router, after which a client resumes.
    """

    def __init__(self, code: grpc.StatusCode, message: str, field: str = "", final: bool = False):
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.final = final

    def details(self) -> bytes:
        """A serialized `google.rpc.Status`, with a `BadRequest` that names the field or an `ErrorInfo` of a verdict."""
        status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message)
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message
            )
            status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.final:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=FINAL, domain=DOMAIN))
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


def unserved(message: str) -> Refused:
    """The cluster cannot serve it now, and another attempt would fare no better."""
    return Refused(grpc.StatusCode.UNAVAILABLE, message, final=True)


def unimplemented(field: str) -> Refused:
    return Refused(grpc.StatusCode.UNIMPLEMENTED, f"`{field}` does not work yet.", field)
