"""Errors that travel as a gRPC status with google.rpc details. Servicers raise them, `calls` sends them.

CallError                 any status
 ├─ InvalidArgument        INVALID_ARGUMENT + BadRequest: which field, which limit
 ├─ ResourceExhausted            RESOURCE_EXHAUSTED + RetryInfo: retry in so many seconds
 ├─ UnavailableError           UNAVAILABLE: this server or a stage behind it went away
 ├─ ReaderStalled         ABORTED: the caller stopped reading
 └─ InternalError                INTERNAL: our fault
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "csm"
NOTHING_SPEAKABLE = "NOTHING_SPEAKABLE"  # the reason of a text without words
CALLER, LOAD, SERVER = "caller", "load", "server"  # who caused a status
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")  # gRPC's retry design (A6): a negative pushback ends the tries


class CallError(Exception):
    """Ends a call with `code`, a one-line message and google.rpc details.

    reason: UPPER_SNAKE_CASE, stable, for programs (ErrorInfo.reason).
    retryable: False tells the caller's channel not to retry by itself, so that each failure is retried
    by the hop next to it and by no other.
    origin: CALLER, LOAD or SERVER, for metrics and alerts; None: by the code.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        text: str,
        *,
        reason: str,
        details: Sequence[message.Message] = (),
        retryable: bool = True,
        origin: str | None = None,
    ):
        super().__init__(text)
        self.code, self.text, self.reason = code, text, reason
        self.details, self.retryable, self.origin = list(details), retryable, origin

    def status(self) -> grpc.Status:
        """What context.abort_with_status takes."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        packed = []
        for detail in [info, *self.details]:
            box = any_pb2.Any()
            box.Pack(detail)
            packed.append(box)
        status = rpc_status.to_status(status_pb2.Status(code=self.code.value[0], message=self.text, details=packed))
        if not self.retryable:
            status = _Status(status.code, status.details, (*status.trailing_metadata, _NO_RETRY))
        return status


@dataclass(frozen=True)
class _Status(grpc.Status):
    code: grpc.StatusCode
    details: str
    trailing_metadata: Any


class InvalidArgument(CallError):
    """A field breaks a limit. `field` is its path in the request, `description` says the limit."""

    def __init__(self, field: str, description: str, *, reason: str = "INVALID_FIELD"):
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
        super().__init__(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"{field}: {description}",
            reason=reason,
            details=[error_details_pb2.BadRequest(field_violations=[violation])],
        )
        self.field, self.description = field, description


class ResourceExhausted(CallError):
    """No room now; `retry_after_s` is when trying again makes sense."""

    def __init__(
        self,
        text: str,
        retry_after_s: float,
        *,
        reason: str = "OVERLOADED",
        retryable: bool = True,
        origin: str | None = None,
    ):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        super().__init__(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            text,
            reason=reason,
            details=[error_details_pb2.RetryInfo(retry_delay=delay)],
            retryable=retryable,
            origin=origin,
        )
        self.retry_after_s = retry_after_s


class UnavailableError(CallError):
    """This server, or a stage behind it, is going or gone; another try may find it back."""

    def __init__(self, text: str, reason: str = "STAGE_UNAVAILABLE"):
        super().__init__(grpc.StatusCode.UNAVAILABLE, text, reason=reason)


class ReaderStalled(CallError):
    """The caller left a message unread for `limit_s`; its slots are freed."""

    def __init__(self, limit_s: float):
        text = f"the caller read nothing for {limit_s:g} s"
        super().__init__(grpc.StatusCode.ABORTED, text, reason="READER_STALLED")


class InternalError(CallError):
    """Something that must not happen did."""

    def __init__(self, text: str, reason: str = "INTERNAL"):
        super().__init__(grpc.StatusCode.INTERNAL, text, reason=reason)


def rich_details(error: grpc.RpcError) -> list[message.Message]:
    """The google.rpc details that a status carries; unknown ones are left out."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has a call's accessors too
    except ValueError:
        return []
    found = []
    for box in status.details if status is not None else ():
        for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo, error_details_pb2.ErrorInfo):
            if box.Is(kind.DESCRIPTOR):
                detail = kind()
                box.Unpack(detail)
                found.append(detail)
    return found


def is_status_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether these are gRPC's own words for a write that met the end of the call: the peer's status is lost then."""
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


def from_upstream(stage: str, error: grpc.aio.AioRpcError, rename: Callable[[str], str] | None = None) -> CallError:
    """The caller's error when `stage` ended our call with `error`.

    A refusal keeps its code and details; `rename` turns the stage's field paths into the caller's.
    Without it the request was ours, not the caller's: a refused field is our fault.
    A stage that failed or vanished is UNAVAILABLE or INTERNAL: CANCELLED and UNKNOWN would mislead a
    caller who cancelled nothing. Our channel to the stage has done the retries: the error is not retryable.
    """
    translated = _from_upstream(stage, error, rename)
    translated.retryable = False
    return translated


def _from_upstream(stage: str, error: grpc.aio.AioRpcError, rename: Callable[[str], str] | None) -> CallError:
    details = rich_details(error)
    text = f"{stage}: {error.details() or error.code().name}"
    reasons = [detail.reason for detail in details if isinstance(detail, error_details_pb2.ErrorInfo)]
    for detail in details:
        if isinstance(detail, error_details_pb2.BadRequest) and detail.field_violations:
            first = detail.field_violations[0]
            if rename is None:
                return InternalError(f"the {stage} stage refused what it was sent ({text})", reason="STAGE_FAILED")
            return InvalidArgument(rename(first.field), first.description, reason=next(iter(reasons), "INVALID_FIELD"))
        if isinstance(detail, error_details_pb2.RetryInfo):
            return ResourceExhausted(text, detail.retry_delay.ToNanoseconds() / 1e9)
    match error.code():
        case (
            grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.RESOURCE_EXHAUSTED | grpc.StatusCode.DEADLINE_EXCEEDED
        ) as code:
            return CallError(code, text, reason=code.name)
        case _ if is_status_lost(error):
            return UnavailableError(f"the {stage} stage's stream was broken off")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return UnavailableError(
                f"the {stage} stage went away or cannot be reached ({error.details() or 'no details'})"
            )
        case _:
            return InternalError(text, reason="STAGE_FAILED")
