"""Health and reflection on a server's own port: anybody may ask, so requests must be small and come at once.

gRPC gathers a request whole before its handler sees it, up to the server's largest message, and knows no
smaller limit for one method. So these requests are read here and get two seconds: no more of them are in memory
than arrive in that time. One that is more than a name is dropped, since a Watch would keep it for as long as
its caller likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.runtime.detached import Detached
from services.runtime.grpc_types import Context, Continuation, Handler
from services.runtime.request_reader import read_in_time

MAX_REQUEST_BYTES = 4096  # a name
_ARRIVAL_S = 2.0  # they are a few bytes, sent together with the call's headers


class PublicMethodGuard(grpc.aio.ServerInterceptor):
    """To gRPC all of them are streaming handlers: those read their requests themselves."""

    def __init__(self, *, arrival_s: float = _ARRIVAL_S, reader_stall_s: float = 30.0):
        """arrival_s: time for each request. reader_stall_s: how long one answer may wait for its reader."""
        self._arrival_s, self._reader_stall_s = arrival_s, reader_stall_s

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/grpc."):
            return handler

        async def call(_: object, context: Context) -> None:
            try:
                await self._answer(handler, context)
            except _RefusedError as refused:
                await context.abort(refused.code, refused.text)
            except grpc.aio.InternalError:
                # A write to a caller that is gone: gRPC logs a traceback for it, and nothing for a cancelled call.
                raise asyncio.CancelledError from None

        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def _answer(self, handler: Any, context: Context) -> None:
        if handler.stream_stream:  # reflection
            async for response in handler.stream_stream(self._requests(handler, context), context):
                await self._write(context, response)
            return
        request = await anext(self._requests(handler, context), None)
        if request is None:
            text = f"no whole request came within {self._arrival_s:g} s"
            raise _RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        if handler.unary_unary:
            await self._write(context, await handler.unary_unary(request, context))
        else:  # Watch, which writes its answers itself
            await handler.unary_stream(request, context)

    async def _requests(self, handler: Any, context: Context) -> AsyncIterator[Any]:
        """Requests until one is late: then as if the caller had no more."""
        while True:
            try:
                data = await read_in_time(context, self._arrival_s)
            except TimeoutError:
                return
            if data is grpc.aio.EOF:
                return
            yield _parse(data, handler.request_deserializer)

    async def _write(self, context: Context, response: Any) -> None:
        try:
            async with asyncio.timeout(self._reader_stall_s):
                await Detached(context.write(response))
        except TimeoutError:
            text = f"the caller read nothing for {self._reader_stall_s:g} s"
            raise _RefusedError(grpc.StatusCode.ABORTED, text) from None


class _RefusedError(Exception):
    """Ends a call. gRPC turns what a deserializer raises into UNKNOWN and a traceback in the log."""

    def __init__(self, code: grpc.StatusCode, text: str):
        super().__init__(text)
        self.code, self.text = code, text


def _parse(data: bytes, deserialize: Callable[[bytes], Any]) -> Any:
    """Raises: _RefusedError."""
    if len(data) > MAX_REQUEST_BYTES:
        text = f"a request of {len(data)} bytes, {MAX_REQUEST_BYTES} are taken"
        raise _RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    try:
        return deserialize(data)
    except DecodeError:
        text = "the request is not a valid protobuf message"
        raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, text) from None
