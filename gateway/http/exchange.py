"""One request and its answer: bounded reading, sending that a stalled reader cannot hold up, and a caller who leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from gateway.http.errors import HttpError
from gateway.http.protocol import RESET
from gateway.http.upstream import Metadata

T = TypeVar("T")
Header = tuple[bytes, bytes]


class CallerLeft(Exception):
    """The connection is gone, or its reader takes nothing."""


class Exchange:
    """status: of the answer, once it has begun. is_broken: the answer ended before its end."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, arrival_s: float, stall_s: float):
        """arrival_s: time for each piece of the body. stall_s: how long the reader may take nothing."""
        self.headers = Headers(scope=scope)
        self.query = QueryParams(scope["query_string"])
        self.path_params: dict[str, Any] = scope.get("path_params", {})
        self.status: int | None = None
        self.is_broken = False
        self.request_id = ""
        self._scope, self._receive, self._send = scope, receive, send
        self._arrival_s, self._stall_s = arrival_s, stall_s
        self._is_read = False

    def metadata(self) -> Metadata:
        """What goes on to the gateway: the caller's token. Raises: HttpError."""
        values = self.headers.getlist("authorization")
        if not all(value.isascii() and value.isprintable() for value in values):
            raise HttpError(401, "authorization: must be visible ASCII", code="invalid_api_key")
        return tuple(("authorization", value) for value in values)

    async def body(self, max_bytes: int, what: str) -> bytes:
        """All of it. Raises: HttpError, CallerLeft."""
        async with aclosing(self.pieces(max_bytes, what)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def pieces(self, max_bytes: int, what: str) -> AsyncGenerator[bytes, None]:
        """The body as it arrives. what: its name, for the error. Raises: HttpError, CallerLeft."""
        stated = self.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > max_bytes:
            raise _too_large(what, max_bytes)
        size = 0
        while not self._is_read:
            try:
                async with asyncio.timeout(self._arrival_s):
                    message = await self._receive()
            except TimeoutError:
                text = f"{what}: nothing came for {self._arrival_s:g} s"
                raise HttpError(408, text, param=what, code="timeout") from None
            if message["type"] == "http.disconnect":
                raise CallerLeft
            self._is_read = not message.get("more_body", False)
            if piece := message.get("body", b""):
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(what, max_bytes)
                yield piece

    async def unless_caller_leaves(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the connection goes. The body has been read. Raises: CallerLeft."""
        running, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnect())
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise CallerLeft
            return running.result()
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)

    async def start(self, status: int, headers: list[Header]) -> None:
        """The status line. Raises: CallerLeft."""
        own = [(b"x-request-id", self.request_id.encode())] if self.request_id else []
        if not self._is_read:
            own.append((b"connection", b"close"))  # what is left of the body is not read
        self.status = status
        await self._give({"type": "http.response.start", "status": status, "headers": [*headers, *own]})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """More of the answer. Raises: CallerLeft."""
        await self._give({"type": "http.response.body", "body": data, "more_body": not last})

    async def answer(self, status: int, body: bytes, headers: list[Header]) -> None:
        """A whole answer. Raises: CallerLeft."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.write(body, last=True)

    async def answer_json(self, value: object) -> None:
        """Raises: CallerLeft."""
        await self.answer(200, json.dumps(value).encode(), [(b"content-type", b"application/json")])

    async def reset(self) -> None:
        """End the connection so that the answer cannot be taken for whole."""
        self.is_broken = True
        reset: Callable[[], None] | None = self._scope.get("state", {}).get(RESET)
        if reset is not None:
            reset()
            await self._disconnect()

    async def _give(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
        except (TimeoutError, OSError):
            raise CallerLeft from None

    async def _disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            self._is_read = True


def _too_large(what: str, max_bytes: int) -> HttpError:
    return HttpError(413, f"{what}: may have {max_bytes} bytes", param=what, code="too_large")
