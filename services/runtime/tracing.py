"""The client half of tracing: one CLIENT span a call, its context sent along as W3C traceparent.

The span ends when the call does, however that happens: answer, refusal, cancel, deadline, a peer
that vanished. (The server half is in `calls`.) A call that nobody reads to its end and nobody
cancels has no end: `finally: call.cancel()`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

_tracer = trace.get_tracer("csm.runtime")
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly


def is_traced(method: str) -> bool:
    """Whether calls of `/package.Service/Method` get spans: what only monitors ask, again and again, does not."""
    return not method.startswith(("/grpc.health.", "/grpc.reflection.")) and not method.endswith(
        ("/GetModelInfo", "/GetLoad")
    )


def call_attributes(method: str) -> dict[str, str]:
    """OpenTelemetry's attributes of an RPC; `method` is `/package.Service/Method`."""
    service, _, name = method.lstrip("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def is_out_of_time(remaining_s: float | None, timeout_s: float | None) -> bool:
    """Whether a call that was cancelled with so much of its timeout left was cancelled for its deadline.

    gRPC rounds a timeout up by as much as 1 % when it sends it on, and who asked cancels at the exact moment:
    the cancel comes first, and would make every span of a deadline that passed say CANCELLED.
    """
    return remaining_s is not None and remaining_s <= 0.1 + 0.01 * (timeout_s or 0.0)


def record_code(span: Span, code: grpc.StatusCode, text: str, *, is_error: bool) -> None:
    """Put a call's outcome on its span."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if is_error:
        span.set_status(Status(StatusCode.ERROR, f"{code.name}: {text}" if text else code.name))


class _ClientTracing:
    """What the four kinds of call have in common."""

    async def _traced(self, continuation: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        if not is_traced(method):
            return await continuation(details, request)
        span = _tracer.start_span(method.lstrip("/"), kind=SpanKind.CLIENT, attributes=call_attributes(method))
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in headers.items():
            metadata.add(key, value)
        try:
            call = await continuation(details._replace(metadata=metadata), request)
        except BaseException as error:
            record_code(span, grpc.StatusCode.CANCELLED, type(error).__name__, is_error=True)
            span.end()
            raise
        call.add_done_callback(lambda _: _end_soon(span, call, details.timeout))
        return call


class _UnaryUnary(_ClientTracing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation, client_call_details, request):
        return await self._traced(continuation, client_call_details, request)


class _UnaryStream(_ClientTracing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation, client_call_details, request):
        return await self._traced(continuation, client_call_details, request)


class _StreamStream(_ClientTracing, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation, client_call_details, request_iterator):
        return await self._traced(continuation, client_call_details, request_iterator)


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """For grpc.aio.insecure_channel(..., interceptors=…); one for each kind of call that CSM has."""
    return [_UnaryUnary(), _UnaryStream(), _StreamStream()]


def _end_soon(span: Span, call: grpc.aio.Call, timeout_s: float | None) -> None:
    task = asyncio.get_running_loop().create_task(_end(span, call, timeout_s))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _end(span: Span, call: grpc.aio.Call, timeout_s: float | None) -> None:
    code = await call.code()
    if code is grpc.StatusCode.CANCELLED and is_out_of_time(call.time_remaining(), timeout_s):
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    record_code(span, code, await call.details() or "", is_error=code is not grpc.StatusCode.OK)
    span.end()
