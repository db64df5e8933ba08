"""The server half of every call: its span, its errors, its end. One interceptor for all servers.

A streaming handler is an async generator; here it becomes a coroutine that writes. Then a call
that is cancelled, timed out or broken off is a CancelledError in *our* frame, and the handler is
closed at once and in the same task: its `finally` blocks run without waiting for the garbage
collector. Handlers clean up in `finally` and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

from services.runtime import instruments
from services.runtime.errors import CallError, InternalError, InvalidArgument, ReaderStalled
from services.runtime.tracing import call_attributes, is_out_of_time, is_traced, record_code

log = logging.getLogger(__name__)
_tracer = trace.get_tracer("csm.runtime")

# OpenTelemetry: these are the server's own failures; the others are the caller's business.
_SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Traces each call as a SERVER span, sends CallErrors as rich statuses, gives up on readers who stall."""

    def __init__(self, reader_stall_s: float):
        """reader_stall_s: how long one message may wait for its reader."""
        self._reader_stall_s = reader_stall_s

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler
        serializers = _forgiving(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_unary(method, handler.unary_unary), *serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _stream(method, handler.unary_stream, self._reader_stall_s), *serializers
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                _stream(method, handler.stream_stream, self._reader_stall_s), *serializers
            )
        return handler  # CSM has no client-streaming method


def _unary(method: str, behavior: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        async with _Call(method, context):
            return await behavior(_decoded(request), context)

    return call


def _stream(method: str, behavior: Any, reader_stall_s: float) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> None:
        async with _Call(method, context):
            request = _EachDecoded(request) if isinstance(request, AsyncIterable) else _decoded(request)
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    try:
                        async with asyncio.timeout(reader_stall_s):
                            await context.write(response)
                    except TimeoutError:
                        raise ReaderStalled(reader_stall_s) from None

    return call


class _Undecodable:
    """Bytes that are no message. gRPC would end the call with UNKNOWN and a traceback in the log."""


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def run(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Undecodable()

    return run


def _decoded(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise InvalidArgument("request", "is not a valid protobuf message: its bytes are truncated or corrupt")
    return request


class _EachDecoded:
    """A plain iterator, not a generator: a handler may drop it half read, or never begin."""

    def __init__(self, requests: AsyncIterable[Any]):
        self._source = requests
        self._requests: AsyncIterator[Any] | None = None

    def __aiter__(self) -> _EachDecoded:
        return self

    async def __anext__(self) -> Any:
        if self._requests is None:
            self._requests = aiter(self._source)
        return _decoded(await anext(self._requests))


class _Call:
    """One call, from its first to its last moment on this server."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext):
        self._method, self._context = method, context

    async def __aenter__(self) -> None:
        carrier = {key: value for key, value in self._context.invocation_metadata() if isinstance(value, str)}
        self._began_s = time.perf_counter()
        self._timeout_s = self._context.time_remaining()
        self._span = trace.INVALID_SPAN
        if is_traced(self._method):
            self._span = _tracer.start_span(
                self._method.lstrip("/"),
                context=propagate.extract(carrier),
                kind=SpanKind.SERVER,
                attributes=call_attributes(self._method),
            )
        self._token = otel_context.attach(trace.set_span_in_context(self._span))

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        code, text = grpc.StatusCode.OK, ""
        try:
            if isinstance(error, CallError):
                code, text = error.code, error.text
            elif isinstance(error, grpc.aio.AbortError):
                code, text = self._context.code(), self._context.details()
            elif _is_gone(error, self._context):
                code, text = _gone_code(self._context, self._timeout_s), "the caller is gone"
            elif error is not None:
                log.exception("call failed", extra={"rpc": self._method}, exc_info=error)
                error = InternalError(f"internal error ({type(error).__name__})")
                code, text = error.code, error.text
        finally:
            # Ended before the status is sent: whoever sees the status can find the span.
            record_code(self._span, code, text, is_error=code in _SERVER_FAULTS)
            self._tell(code, text)
            self._span.end()
            otel_context.detach(self._token)
        if isinstance(error, CallError):
            await self._context.abort_with_status(error.status())
        # Nobody is there to be told, and nothing is wrong here: gRPC would log a traceback.
        return isinstance(error, grpc.aio.InternalError)

    def _tell(self, code: grpc.StatusCode, text: str) -> None:
        """Metrics and log: every call that has a span, however it ended."""
        if not is_traced(self._method):
            return
        took_s = time.perf_counter() - self._began_s
        instruments.rpc_duration.record(
            took_s, {**call_attributes(self._method), "rpc.response.status_code": code.name}
        )
        log.log(
            logging.WARNING if code in _SERVER_FAULTS else logging.DEBUG,
            "%s ended with %s%s", self._method.rpartition("/")[2], code.name, f": {text}" if text else "",
            extra={"rpc": self._method, "code": code.name, "duration_ms": round(took_s * 1e3, 1)},
        )  # fmt: skip


def _is_gone(error: BaseException | None, context: grpc.aio.ServicerContext) -> bool:
    """Whether the call ended because its caller did, in any of the shapes gRPC gives that.

    A request stream that breaks off looks, to who reads it, like one that the caller closed; the
    handler learns the truth at its next write, as an InternalError (a send on a dead call).
    """
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.InternalError)):
        return True
    return isinstance(error, Exception) and (context.cancelled() or context.done())


def _gone_code(context: grpc.aio.ServicerContext, timeout_s: float | None) -> grpc.StatusCode:
    if is_out_of_time(context.time_remaining(), timeout_s):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
