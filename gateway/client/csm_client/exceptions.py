"""What the client raises when a call fails.

    SpeechError              any failure of a call: `.code`, `.reason`, one readable line
     ├─ InvalidRequest       the request breaks a limit: `.violations`, field by field
     ├─ Unauthenticated      no token, or one that the server does not know
     ├─ Overloaded           no room now, or more than the token may have: `.retry_after_s`
     ├─ Unavailable          nothing answers, or a stage went away; another try may work
     ├─ DeadlineExceeded     the call's own time was up
     └─ ServerFault          the server broke, or does not keep to the contract

A call that the caller itself cancels ends in asyncio.CancelledError, as everywhere in asyncio.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
}


class SpeechError(Exception):
    """A call failed. `reason` is the server's stable word for it (ErrorInfo.reason), if it gave one."""

    def __init__(self, text: str, *, code: grpc.StatusCode, reason: str | None = None):
        super().__init__(text)
        self.code, self.reason = code, reason


class InvalidRequest(SpeechError):
    """The request will fail again unless it is changed. `violations`: (field, what its limit is)."""

    violations: tuple[tuple[str, str], ...] = ()


class Unauthenticated(SpeechError):
    """The server wants a bearer token, and another than it was shown, if it was shown one."""


class Overloaded(SpeechError):
    """The server has no room for this caller. `retry_after_s` is when trying again makes sense, if the server said so."""

    retry_after_s: float | None = None


class Unavailable(SpeechError):
    """Nothing answers at the address, or a stage behind it went away."""


class DeadlineExceeded(SpeechError):
    """The call took longer than its timeout."""


class ServerFault(SpeechError):
    """The server broke, or answered something that the contract does not allow."""


def broken_contract(text: str) -> ServerFault:
    """For a stream that does not keep to the contract."""
    return ServerFault(text, code=grpc.StatusCode.DATA_LOSS)


def from_rpc_error(error: grpc.RpcError) -> SpeechError:
    """The exception that says what a failed call's status means. error: of grpc or of grpc.aio."""
    code, text = error.code(), error.details() or error.code().name
    details = list(_rich_details(error))
    kind: type[SpeechError] = SpeechError
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        kind = InvalidRequest
    elif code is grpc.StatusCode.UNAUTHENTICATED:
        kind = Unauthenticated
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC uses the same code for a message over a size limit, which no waiting cures.
        kind = InvalidRequest if "message larger than max" in text else Overloaded
    elif code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        kind = Unavailable  # our own cancels never come here, so a CANCELLED is the server leaving
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        kind = DeadlineExceeded
    elif code in _FAULTS:
        kind = ServerFault

    reason = next((d.reason for d in details if isinstance(d, error_details_pb2.ErrorInfo)), None)
    found = kind(text, code=code, reason=reason)
    for detail in details:
        if isinstance(found, InvalidRequest) and isinstance(detail, error_details_pb2.BadRequest):
            found.violations += tuple((v.field, v.description) for v in detail.field_violations)
        if isinstance(found, Overloaded) and isinstance(detail, error_details_pb2.RetryInfo):
            found.retry_after_s = detail.retry_delay.ToNanoseconds() / 1e9
    return found


def _rich_details(error: grpc.RpcError) -> Iterator[Message]:
    """The google.rpc details that the status carries; unknown ones are left out."""
    metadata: Any = error.trailing_metadata() or ()  # grpc's and grpc.aio's types have nothing in common
    packed: bytes = next((value for key, value in metadata if key == "grpc-status-details-bin"), b"")
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:
        return
    for box in status.details:
        for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo):
            detail = kind()
            if box.Unpack(detail):
                yield detail
