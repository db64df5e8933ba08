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
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

from services.runtime import instruments
from services.runtime.detached import Detached
from services.runtime.errors import CALLER, LOAD, SERVER, CallError, InternalError, ReaderStalled
from services.runtime.grpc_types import Context, Continuation, Handler
from services.runtime.request_reader import RequestLimits, RequestStream, first_message
from services.runtime.time_limits import TimeLimit
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
    """Reads requests within limits, traces each call as a SERVER span, sends CallErrors as rich statuses.

    To gRPC all methods are streaming handlers: those read their requests themselves. A handler may answer with bytes:
    a message that is serialized already.
    """

    def __init__(self, limits: RequestLimits, *, reader_stall_s: float, patient_s: float, trusts_trace: bool = True):
        """
        reader_stall_s: how long one message may wait for its reader.
        patient_s: a deadline that is shorter and passes is the caller's fault.
        trusts_trace: whether a call's span continues its caller's trace; otherwise it starts one and links to it.
        """
        self._limits, self._reader_stall_s, self._patient_s = limits, reader_stall_s, patient_s
        self._trusts_trace = trusts_trace
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def wait_until_idle(self, for_s: float) -> None:
        """Return once no call has been in flight for `for_s`."""
        while True:
            await self._idle.wait()
            await asyncio.sleep(for_s)
            if not self._in_flight:
                return

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler
        serve = self._unary if handler.unary_unary or handler.unary_stream else self._stream

        async def call(_: object, context: Context) -> None:
            with self._counted():
                async with _Call(method, context, self._patient_s, self._trusts_trace):
                    await serve(handler, context)

        return grpc.stream_stream_rpc_method_handler(call, None, _serializer(handler.response_serializer))

    async def _unary(self, handler: Any, context: Context) -> None:
        """A call with one request. It is read inside what the handler's `admit` attribute gives, if it has one."""
        admit = getattr(handler.unary_unary or handler.unary_stream, "admit", nullcontext)
        with admit():
            data = await first_message(context, self._limits)
        with self._limits.hold(len(data)):
            request = await self._limits.parse(data, handler.request_deserializer)
            del data
            if handler.unary_unary:
                await self._write(context, await handler.unary_unary(request, context))
            else:
                await self._write_all(context, handler.unary_stream(request, context))

    async def _stream(self, handler: Any, context: Context) -> None:
        """A call with a stream of requests. CSM has none whose answer is a single message."""
        requests = RequestStream(context, self._limits, handler.request_deserializer)
        try:
            await self._write_all(context, handler.stream_stream(requests, context))
        finally:
            requests.close()

    async def _write_all(self, context: Context, responses: AsyncGenerator[Any, None]) -> None:
        async with aclosing(responses):
            async for response in responses:
                await self._write(context, response)

    async def _write(self, context: Context, response: Any) -> None:
        try:
            with TimeLimit(self._reader_stall_s):
                await Detached(context.write(response))
        except TimeoutError:
            raise ReaderStalled(self._reader_stall_s) from None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


def _serializer(serialize: Any) -> Callable[[Any], bytes]:
    return lambda message: message if isinstance(message, bytes) else serialize(message)


class _Call:
    """One call, from its first to its last moment on this server."""

    def __init__(self, method: str, context: Context, patient_s: float, trusts_trace: bool):
        self._method, self._context, self._patient_s = method, context, patient_s
        self._trusts_trace = trusts_trace

    async def __aenter__(self) -> None:
        carrier = {key: value for key, value in self._context.invocation_metadata() or () if isinstance(value, str)}
        self._began_s = time.perf_counter()
        self._timeout_s = self._context.time_remaining()
        self._span: trace.Span = trace.INVALID_SPAN
        if is_traced(self._method):
            theirs = propagate.extract(carrier, otel_context.Context())
            caller = trace.get_current_span(theirs).get_span_context()
            is_linked = not self._trusts_trace and caller.is_valid
            self._span = _tracer.start_span(
                self._method.lstrip("/"),
                # An empty context begins a trace: neither the caller's sampling nor its baggage counts.
                context=theirs if self._trusts_trace else otel_context.Context(),
                links=[trace.Link(caller)] if is_linked else [],
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
            # Ended before the status is sent: a caller that sees the status can find the span.
            origin = error_origin(code, error, self._timeout_s, self._patient_s)
            record_code(self._span, code, text, is_error=origin == SERVER)
            self._record(code, text, origin)
            self._span.end()
            otel_context.detach(self._token)
        if isinstance(error, CallError):
            try:
                await Detached(self._context.abort_with_status(error.status()))
            except grpc.aio.InternalError:
                error = None
                raise asyncio.CancelledError from None
        if isinstance(error, grpc.aio.InternalError):
            # A write on a call whose caller left. gRPC logs a traceback for it, and nothing for a cancelled call.
            raise asyncio.CancelledError from None
        return False

    def _record(self, code: grpc.StatusCode, text: str, origin: str | None) -> None:
        """Metrics and log: every call that has a span, however it ended."""
        if not is_traced(self._method):
            return
        took_s = time.perf_counter() - self._began_s
        labels = {**call_attributes(self._method), "rpc.response.status_code": code.name}
        if origin is not None:
            labels["csm.error.origin"] = origin
        instruments.rpc_duration.record(took_s, labels)
        log.log(
            logging.WARNING if origin == SERVER else logging.DEBUG,
            "%s ended with %s%s", self._method.rpartition("/")[2], code.name, f": {text}" if text else "",
            extra={"rpc": self._method, "code": code.name, "duration_ms": round(took_s * 1e3, 1)},
        )  # fmt: skip


def error_origin(
    code: grpc.StatusCode, error: BaseException | None, timeout_s: float | None, patient_s: float
) -> str | None:
    """Who caused a status: None for OK.

    timeout_s: what the caller gave the call, None for as long as it takes. A deadline crosses hops, so a stage
    cannot tell whose it was, but a short one is never ours.
    """
    if code is grpc.StatusCode.OK:
        return None
    if isinstance(error, CallError) and error.origin is not None:
        return error.origin
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CALLER if timeout_s is not None and timeout_s < patient_s else SERVER
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LOAD
    return SERVER if code in _SERVER_FAULTS else CALLER


def _is_gone(error: BaseException | None, context: Context) -> bool:
    """Whether the call ended because its caller did, in any of the shapes gRPC gives that.

    A broken request stream looks to its reader like one that the caller closed; the handler
    sees the difference at its next write, as an InternalError (a send on a dead call).
    """
    if isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.InternalError)):
        return True
    return isinstance(error, Exception) and (context.cancelled() or context.done())


def _gone_code(context: Context, timeout_s: float | None) -> grpc.StatusCode:
    if is_out_of_time(context.time_remaining(), timeout_s):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
