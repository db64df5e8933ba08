"""One call on one replica of a stage, whose failures are CallErrors that name the stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from services.runtime.detached import Detached
from services.runtime.errors import CallError, InternalError, UnavailableError, from_upstream, is_status_lost

Rename = Callable[[str], str]

# A stream is stalled when the stage owes a message, and gives none for so many times the longest step so far.
STALL_STEPS = 10
STALL_FLOOR_S = 10.0
_OUT_OF_TIME_S = 0.01  # a call that ended with less time left was ended by its deadline
_STALL_AMONG_OTHERS = 3  # times as long while other streams of the same replica get something: then it is slow at worst


class StageCall:
    """A call that its owner must `close`, however it ends.

    stage: as errors name it. call: of grpc.aio, unary or streaming. rename: the stage's field paths as the caller
    of the gateway knows them; without it a refused field is our own fault.
    """

    def __init__(self, stage: str, call: Any, rename: Rename | None = None):
        self.stage, self._call, self._rename = stage, call, rename
        self._abandoned: str | None = None
        # Set by the link that reads the stream. is_owed: the stage has all that it needs for its next message.
        # is_resumable: when the call is abandoned, another replica can take over.
        self.is_owed: Callable[[], bool] = lambda: False
        self.is_resumable: Callable[[], bool] = lambda: True
        self._reading = False
        self._owed_from_s: float | None = None
        self._longest_step_s = 0.0
        self.last_message_s = 0.0  # when the stage last gave something, on time.monotonic

    def abandon(self, why: str) -> None:
        """End the call: a task that waits for it gets UNAVAILABLE with `why`."""
        self._abandoned = why
        self._call.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Run `callback` when the call is over."""
        self._call.add_done_callback(callback)

    def stalled_s(self, now_s: float, replica_gave_s: float) -> float | None:
        """How long a message has been owed, once that is too long; None before. To be asked twice a second.

        replica_gave_s: when the replica last gave something to any stream, on time.monotonic.

        Time without a pending read does not count: a slow listener is no stalled stage.
        """
        if not self._reading or not self.is_owed():
            self._owed_from_s = None
        elif self._owed_from_s is None:
            self._owed_from_s = now_s
        else:
            limit_s = max(STALL_FLOOR_S, STALL_STEPS * self._longest_step_s)
            if now_s - replica_gave_s < limit_s:
                limit_s *= _STALL_AMONG_OTHERS
            if now_s - self._owed_from_s > limit_s:
                return now_s - self._owed_from_s
        return None

    async def response(self) -> Any:
        """The answer of a unary call. Raises: CallError."""
        return await self._guarded(self._call)

    async def read(self) -> Any:
        """The next message, or None at the end. Raises: CallError."""
        began_s, self._reading = time.monotonic(), True
        try:
            # Detached: gRPC would keep a message for good that comes for a read which was cancelled.
            message = await self._guarded(Detached(self._call.read()))
        except asyncio.CancelledError:
            self._call.cancel()  # ends the read
            raise
        finally:
            self._reading, self._owed_from_s = False, None
        self.last_message_s = time.monotonic()
        self._longest_step_s = max(self._longest_step_s, self.last_message_s - began_s)
        return None if message is grpc.aio.EOF else message

    async def first(self, event: str) -> Any:
        """The first message's `event`: the stage has admitted the call. Raises: CallError."""
        message = await self.read()
        if message is None or message.WhichOneof("event") != event:
            raise InternalError(f"{self.stage}: the stream did not begin with {event}")
        return getattr(message, event)

    async def write(self, request: Any) -> None:
        """Send one message. Raises: CallError with the status that the stage ended the call with."""
        await self._send(self._call.write(request))

    async def done_writing(self) -> None:
        """Send the end of our messages. Raises: as `write`."""
        await self._send(self._call.done_writing())

    async def end(self) -> None:
        """Let a stream that said `finished` end by itself: a cancel now would be its outcome.

        A stage that goes away only now has given all. Raises: CallError for any other end but OK.
        """
        try:
            message = await self.read()
        except UnavailableError:
            return
        if message is not None:
            raise InternalError(f"{self.stage}: the stream went on after finished")

    def cancel(self) -> None:
        """End the call, if it still runs. A stage frees its slot when its stream ends."""
        self._call.cancel()

    async def close(self) -> None:
        """Cancel, and wait until nothing of it is left."""
        self._call.cancel()
        if hasattr(self._call, "done_writing"):
            # A call that the stage ended keeps the task that feeds it until its feed ends.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                await self._call.done_writing()

    async def _send(self, sending: Awaitable[None]) -> None:
        try:
            await self._guarded(sending)
        except asyncio.InvalidStateError:
            # A write only says that the call is over; its status says why.
            raise await self._status() from None

    async def _guarded(self, waiting: Awaitable[Any]) -> Any:
        try:
            return await waiting
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            if _is_cancelled():  # we are; otherwise the call was cancelled under us
                raise
            raise UnavailableError(f"{self.stage}: {self._abandoned or 'the stream was cancelled'}") from None

    async def _status(self) -> CallError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return InternalError(f"{self.stage}: the stream ended before its end was sent")
        metadata = await self._call.initial_metadata(), await self._call.trailing_metadata()
        return self._error(grpc.aio.AioRpcError(code, *metadata, await self._call.details()))

    def _error(self, error: grpc.aio.AioRpcError) -> CallError:
        if self._abandoned is not None:
            return UnavailableError(f"{self.stage}: {self._abandoned}")
        if is_status_lost(error) and (left_s := self._call.time_remaining()) is not None and left_s < _OUT_OF_TIME_S:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            return CallError(code, f"{self.stage}: Deadline Exceeded", reason=code.name, retryable=False)
        return from_upstream(self.stage, error, self._rename)


def _is_cancelled() -> bool:
    """Whether the current task is. A frame that held the task would keep it: its error refers to its frames."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
