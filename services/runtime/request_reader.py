"""Reads a call's requests: within a time limit, within a budget of memory, and checked before they are parsed.

gRPC gathers a message whole before anybody sees it. So a message that comes slowly holds memory: how many
may do so at once is bounded, and the one that has taken longest is ended when there are more.
No read is ever cancelled (see `detached`): a call whose message is late is ended, and the read ends with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.runtime import wire_limits
from services.runtime.detached import Detached
from services.runtime.errors import CallError, InvalidArgument, ResourceExhausted
from services.runtime.grpc_types import Context
from services.runtime.time_limits import TimeLimit

MIB = 1024 * 1024
SMALL_BYTES = 64 * 1024  # parsed on the event loop: at most a millisecond; and not counted
_PLAIN_BYTES = 1 * MIB  # parsed there too when it is hardly more than audio: a copy, 0.1 ms
_PLAIN_FIELDS = 32
MAX_BYTES_WITHOUT_AUDIO = 4 * MIB
_SLOW_S = 1.0

_reading: set[asyncio.Future[Any]] = set()  # the loop holds tasks only weakly


@dataclass(eq=False, slots=True)
class _Arrival:
    """A request that is read. began_s: on the event loop's clock."""

    timeout: asyncio.Timeout
    began_s: float
    evicted: bool = False


class RequestLimits:
    """What all calls of a server share."""

    def __init__(self, *, timeout_s: float, idle_s: float, memory_bytes: int, max_message_bytes: int):
        """
        timeout_s: time for a unary call's message. idle_s: see RequestStream.limit_idle.
        memory_bytes: of requests in service. So many messages of max_message_bytes may arrive slowly at once.
        """
        self.timeout_s, self.idle_s, self._memory_bytes = timeout_s, idle_s, memory_bytes
        self.max_slow = max(2, memory_bytes // max_message_bytes)
        self._arrivals: dict[_Arrival, None] = {}  # oldest first
        self._check: asyncio.TimerHandle | None = None
        self._held_bytes = 0
        self._parsers = ThreadPoolExecutor(2, thread_name_prefix="request-parser")

    @contextmanager
    def arriving(self, timeout: asyncio.Timeout) -> Iterator[_Arrival]:
        """Count a message in arrival, which `timeout` ends. It is evicted when too many others arrive slowly too."""
        loop = asyncio.get_running_loop()
        arrival = _Arrival(timeout, loop.time())
        self._arrivals[arrival] = None
        if self._check is None:
            self._check = loop.call_later(_SLOW_S, self._evict, loop)
        try:
            yield arrival
        finally:
            del self._arrivals[arrival]

    def _evict(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the oldest of the slow ones that are too many."""
        slow = [each for each in self._arrivals if loop.time() - each.began_s >= _SLOW_S and not each.evicted]
        for arrival in slow[: max(0, len(slow) - self.max_slow)]:
            arrival.evicted = True
            arrival.timeout.reschedule(loop.time())
        self._check = loop.call_later(_SLOW_S / 2, self._evict, loop) if self._arrivals else None

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count a request's memory for as long as its call runs. Raises: ResourceExhausted."""
        held = self.reserve(size)
        try:
            yield
        finally:
            self.release(held)

    def reserve(self, size: int) -> int:
        """Count a request's memory. Returns: what to `release`. Raises: ResourceExhausted."""
        if size <= SMALL_BYTES:
            return 0
        if self._held_bytes and self._held_bytes + size > self._memory_bytes:
            text = f"requests: {self._memory_bytes // MIB} MiB of them are being served"
            raise ResourceExhausted(text, 1.0, reason="REQUEST_MEMORY")
        self._held_bytes += size
        return size

    def release(self, held: int) -> None:
        """Give back what `reserve` returned."""
        self._held_bytes -= held

    async def parse(self, data: bytes, deserialize: Callable[[bytes], Any] | None) -> Any:
        """The message. Raises: InvalidArgument."""
        if deserialize is None:
            return data
        if len(data) <= SMALL_BYTES or (len(data) <= _PLAIN_BYTES and _is_plain(data, deserialize)):
            return _parse(data, deserialize)
        return await asyncio.get_running_loop().run_in_executor(self._parsers, _parse_checked, data, deserialize)


async def first_message(context: Context, limits: RequestLimits) -> bytes:
    """The one message of a unary request. Raises: CallError."""
    try:
        async with asyncio.timeout(limits.timeout_s) as timeout:
            with limits.arriving(timeout) as arrival:
                message = await Detached(context.read())
    except TimeoutError:
        if arrival.evicted:
            text = f"requests: {limits.max_slow} others arrive slowly too; send it in one go, or later"
            raise ResourceExhausted(text, 1.0, reason="SLOW_REQUEST") from None
        text = f"the request did not arrive within {limits.timeout_s:g} s"
        raise CallError(grpc.StatusCode.ABORTED, text, reason="SLOW_REQUEST") from None
    if not isinstance(message, bytes):
        raise InvalidArgument("request", "is missing: the call was half-closed without a message")
    return message


async def read_in_time(context: Context, timeout_s: float) -> Any:
    """The call's next message, raw, or grpc.aio.EOF. Raises: TimeoutError.

    After a timeout the read goes on until the call ends, which the caller of this sees to.
    """
    reading = asyncio.ensure_future(_run(context.read()))
    _reading.add(reading)
    reading.add_done_callback(_forget)
    # Not asyncio.timeout: what came while the whole process stood still is in time.
    await asyncio.wait({reading}, timeout=timeout_s)
    if not reading.done():
        raise TimeoutError
    return reading.result()


class RequestStream:
    """The messages of a streaming request. A plain iterator, not a generator: a handler may drop it half read.

    The memory of a message counts until the next one is read, or `close`.
    """

    def __init__(self, context: Context, limits: RequestLimits, deserialize: Callable[[bytes], Any] | None):
        self._context, self._limits, self._deserialize = context, limits, deserialize
        self._idle_from_s: float | None = None  # None: no limit
        self._timeout: TimeLimit | None = None  # of the read that waits
        self._held = 0  # what the last message reserved

    def close(self) -> None:
        """The call is over."""
        self._limits.release(self._held)
        self._held = 0

    def limit_idle(self, from_s: float) -> None:
        """End the call when no message comes for `RequestLimits.idle_s` after `from_s` and after the last message.

        from_s: on the clock of `time.monotonic`, such as when all audio sent so far has been played.
        """
        self._idle_from_s = from_s
        if self._timeout is not None:
            self._timeout.reschedule(max(asyncio.get_running_loop().time(), from_s) + self._limits.idle_s)

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Any:
        if self._idle_from_s is None:
            message = await Detached(self._context.read())
        else:
            message = await self._read_in_time(self._idle_from_s)
        self._limits.release(self._held)
        self._held = 0
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        self._held = self._limits.reserve(len(message))
        return await self._limits.parse(message, self._deserialize)

    async def _read_in_time(self, from_s: float) -> Any:
        idle_s = self._limits.idle_s
        try:
            with TimeLimit(max(0.0, from_s - asyncio.get_running_loop().time()) + idle_s) as self._timeout:
                return await Detached(self._context.read())
        except TimeoutError:
            text = f"no message came for {idle_s:g} s though all audio was played"
            raise CallError(grpc.StatusCode.ABORTED, text, reason="STREAM_IDLE") from None
        finally:
            self._timeout = None


def limit_idle(requests: object, from_s: float) -> None:
    """As RequestStream.limit_idle; nothing for an iterator of another kind, as tests have."""
    if isinstance(requests, RequestStream):
        requests.limit_idle(from_s)


async def _run(operation: Coroutine[Any, Any, Any]) -> Any:
    return await operation


def _forget(reading: asyncio.Future[Any]) -> None:
    _reading.discard(reading)
    if not reading.cancelled():
        reading.exception()  # or the loop logs it as never retrieved


def _parse(data: bytes, deserialize: Callable[[bytes], Any]) -> Any:
    try:
        return deserialize(data)
    except DecodeError:
        raise InvalidArgument(
            "request", "is not a valid protobuf message: its bytes are truncated or corrupt"
        ) from None


def _layout_of(deserialize: Callable[[bytes], Any]) -> wire_limits.Layout | None:
    descriptor = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
    return None if descriptor is None else wire_limits.layout_of(descriptor)


def _is_plain(data: bytes, deserialize: Callable[[bytes], Any]) -> bool:
    """Whether the message has so few fields, and so few packed numbers, that nearly all of it is audio or text."""
    if (layout := _layout_of(deserialize)) is None:
        return False
    try:
        wire_limits.check(data, layout, max_fields=_PLAIN_FIELDS, max_packed_bytes=_PLAIN_FIELDS)
    except wire_limits.TooManyFieldsError:
        return False
    return True


def _parse_checked(data: bytes, deserialize: Callable[[bytes], Any]) -> Any:
    """As `_parse`, off the event loop and after a look at what the message would become."""
    if (layout := _layout_of(deserialize)) is not None:
        if not layout.has_bytes and len(data) > MAX_BYTES_WITHOUT_AUDIO:
            raise InvalidArgument("request", f"has {len(data)} bytes, at most {MAX_BYTES_WITHOUT_AUDIO} are taken")
        try:
            wire_limits.check(data, layout)
        except wire_limits.TooManyFieldsError as error:
            raise InvalidArgument("request", str(error)) from None
    return _parse(data, deserialize)
