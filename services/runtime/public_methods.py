"""Health and reflection on a server's own port: anybody may ask, so what they send must be small and come at once.

gRPC gathers a request whole before its handler sees it, up to the server's largest message, and knows no
smaller limit for one method. So these requests are read here, and given so little time that nobody can
have much of them waiting in memory: no more than what arrives in that time. One that is more than a name
is dropped then: a Watch would keep it for as long as its caller likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

MAX_REQUEST_BYTES = 4096  # a name
_ARRIVAL_S = 2.0  # they are a few bytes, sent together with the call's headers


class PublicMethodGuard(grpc.aio.ServerInterceptor):
    """To gRPC all of them are streaming handlers: those read their requests themselves."""

    def __init__(self, arrival_s: float = _ARRIVAL_S):
        self._arrival_s = arrival_s

    async def intercept_service(self, continuation, handler_call_details):
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/grpc."):
            return handler

        async def answer(arriving: _FirstMessageTimeout, context: grpc.aio.ServicerContext) -> None:
            if handler.stream_stream:  # reflection
                async for response in handler.stream_stream(arriving, context):
                    await context.write(response)
                return
            try:
                request = await anext(arriving)
            except StopAsyncIteration:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"no whole request came within {self._arrival_s:g} s"
                )
            if handler.unary_unary:
                await context.write(await handler.unary_unary(request, context))
            else:  # Watch, which writes its answers itself
                await handler.unary_stream(request, context)

        async def call(requests: AsyncIterable[Any], context: grpc.aio.ServicerContext) -> None:
            try:
                await answer(_FirstMessageTimeout(requests, self._arrival_s), context)
            except _Refused as refused:
                await context.abort(refused.code, refused.text)
            except grpc.aio.InternalError:
                pass  # a write to a caller who is gone: gRPC would log a traceback

        return grpc.stream_stream_rpc_method_handler(
            call, _checked(handler.request_deserializer), handler.response_serializer
        )


class _Refused(Exception):
    """A request that is none. gRPC turns what a deserializer raises into UNKNOWN and a traceback in the log."""

    def __init__(self, code: grpc.StatusCode, text: str):
        super().__init__(text)
        self.code, self.text = code, text


def _checked(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """As `deserialize`, but gives what is wrong with a request in its place."""

    def run(data: bytes) -> Any:
        if len(data) > MAX_REQUEST_BYTES:
            return _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"a request of {len(data)} bytes, {MAX_REQUEST_BYTES} are taken"
            )
        try:
            return deserialize(data)
        except DecodeError:
            return _Refused(grpc.StatusCode.INVALID_ARGUMENT, "the request is not a valid protobuf message")

    return run


class _FirstMessageTimeout:
    """Requests, until one is not there in time: then as if the caller had no more."""

    def __init__(self, requests: AsyncIterable[Any], arrival_s: float):
        self._requests: AsyncIterator[Any] = aiter(requests)
        self._arrival_s = arrival_s

    def __aiter__(self) -> _FirstMessageTimeout:
        return self

    async def __anext__(self) -> Any:
        arriving = asyncio.ensure_future(anext(self._requests))
        try:
            # Not asyncio.timeout: what has come while the whole process stood still is there in time.
            await asyncio.wait({arriving}, timeout=self._arrival_s)
            if arriving.done():
                request = arriving.result()
                if isinstance(request, _Refused):
                    raise request
                return request
        finally:
            arriving.cancel()
        raise StopAsyncIteration
