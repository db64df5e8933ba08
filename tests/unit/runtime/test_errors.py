"""What a caller learns of a stage's error."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc.aio import AioRpcError, Metadata

from services.runtime.errors import CallError, InvalidArgument, ResourceExhausted, from_upstream


def error(code, details="", status=None):
    trailing = Metadata(*(status.trailing_metadata if status is not None else ()))
    return AioRpcError(code, Metadata(), trailing, details)


@pytest.mark.parametrize(
    ("code", "details", "told"),
    [
        ("UNAVAILABLE", "Socket closed", "UNAVAILABLE"),
        ("CANCELLED", "", "UNAVAILABLE"),
        ("INTERNAL", "Internal error from Core", "UNAVAILABLE"),  # a write that met the end of the call
        ("INTERNAL", "a bug", "INTERNAL"),
        ("UNKNOWN", "", "INTERNAL"),
        ("UNIMPLEMENTED", "", "INTERNAL"),
        ("DEADLINE_EXCEEDED", "", "DEADLINE_EXCEEDED"),
        ("RESOURCE_EXHAUSTED", "", "RESOURCE_EXHAUSTED"),
    ],
)
def test_codes(code, details, told):
    answer = from_upstream("codec", error(grpc.StatusCode[code], details))
    assert answer.code is grpc.StatusCode[told] and "codec" in answer.text


def test_a_refused_field_is_renamed_or_our_own_fault():
    status = InvalidArgument("frames[3]", "too many").status()
    refused = error(grpc.StatusCode.INVALID_ARGUMENT, "frames[3]: too many", status)
    renamed = from_upstream("backbone", refused, lambda field: f"utterance.{field}")
    assert isinstance(renamed, InvalidArgument) and renamed.field == "utterance.frames[3]"
    assert from_upstream("codec", refused).code is grpc.StatusCode.INTERNAL


def test_overload_keeps_when_to_come_back():
    status = ResourceExhausted("full", 2.5).status()
    answer = from_upstream("codec", error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", status))
    assert isinstance(answer, ResourceExhausted) and answer.retry_after_s == 2.5
    assert isinstance(answer, CallError) and isinstance(answer.details[0], error_details_pb2.RetryInfo)
