"""The client half of tracing: one CLIENT span a call, its context sent along as W3C traceparent.

The span ends when the call does, however that happens: answer, refusal, cancel, deadline, a peer
that vanished. (The server half is in `calls`.) A call that is neither read to its end nor
cancelled never ends: `finally: call.cancel()`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
    return {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}


def is_out_of_time(remaining_s: float | None, timeout_s: float | None) -> bool:
    """Whether a call that was cancelled with so much of its timeout left was cancelled for its deadline.

    gRPC rounds a timeout up by as much as 1 % when it sends it on, and the caller cancels at the exact moment:
    the cancel comes first, and would make every span of a deadline that passed say CANCELLED.
    """
    if remaining_s is None:
        return False
    timeout_s = timeout_s or 0.0
    return (
        remaining_s <= min(0.1, timeout_s / 4) + 0.01 * timeout_s
    )  # of a short timeout, a part: it too may be cancelled


def record_code(span: Span, code: grpc.StatusCode, text: str, *, is_error: bool) -> None:
    """Put a call's outcome on its span."""
    span.set_attribute("rpc.response.status_code", code.name)
    if is_error:
        span.set_attribute("error.type", code.name)
        span.set_status(Status(StatusCode.ERROR, f"{code.name}: {text}" if text else code.name))


class TracedChannel(grpc.aio.Channel):
    """`channel`, with a span for every call made over it.

    No interceptor does it: gRPC's put a queue and two tasks between each message of a stream and its call.
    """

    def __init__(self, channel: grpc.aio.Channel):
        self._channel = channel

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(method, self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(method, self._channel.stream_stream(method, *args, **kwargs))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> TracedChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _traced(method: str, start: Callable[..., grpc.aio.Call]) -> Callable[..., grpc.aio.Call]:
    if not is_traced(method):
        return start
    attributes = call_attributes(method)

    def call(*requests: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> grpc.aio.Call:
        span = _tracer.start_span(method.lstrip("/"), kind=SpanKind.CLIENT, attributes=attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span))
        try:
            running = start(*requests, timeout=timeout, metadata=(*(metadata or ()), *headers.items()), **options)
        except BaseException as error:
            record_code(span, grpc.StatusCode.CANCELLED, type(error).__name__, is_error=True)
            span.end()
            raise
        running.add_done_callback(lambda _: _end_soon(span, running, timeout))
        return running

    return call


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
