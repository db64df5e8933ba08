"""Reads and writes that survive the cancellation of the task that awaits them.

gRPC frees a message when the coroutine that started its operation takes the result. If that coroutine is
cancelled first, the message is never freed: up to 64 MiB a call. So our tasks may be cancelled, and the
operation's coroutine goes on to its end, which comes when the call ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Detached(Generic[T]):
    """`await Detached(coroutine)` gives the coroutine's result. Cancelled, it leaves the coroutine to run on.

    As `asyncio.shield`, without its task and its further step of the event loop: streams await thousands a second.
    The coroutine must await asyncio futures alone, as gRPC's do.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]):
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, None, T]:
        while True:
            try:
                future = _step(self._coroutine)
            except StopIteration as ended:
                result: T = ended.value
                return result
            try:
                yield _Wait(future)
            except BaseException as error:
                if not future.done():
                    _run_on(self._coroutine, future)
                    raise
                if future.cancelled() or future.exception() is error:
                    continue  # the operation failed: its coroutine decides what that means
                # The task was cancelled after the result had come: take it, or it stays in memory.
                _drain(self._coroutine)
                raise


class _Wait:
    """What a task waits for in place of `future`. To cancel it wakes the task and leaves the future alone."""

    __slots__ = ("_asyncio_future_blocking", "_future", "_wake")

    def __init__(self, future: asyncio.Future[Any]):
        self._future, self._asyncio_future_blocking = future, True
        self._wake: tuple[Callable[[Any], None], Context] | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._future.get_loop()

    def add_done_callback(self, wake: Callable[[Any], None], *, context: Context) -> None:
        self._wake = wake, context
        self._future.add_done_callback(wake, context=context)

    def cancel(self, msg: Any = None) -> bool:
        if self._wake is None or self._future.done():
            return False
        wake, context = self._wake
        self._future.remove_done_callback(wake)
        cancelled = self.get_loop().create_future()
        cancelled.cancel(msg)
        self.get_loop().call_soon(wake, cancelled, context=context)
        self._wake = None
        return True


def _step(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
    """Run to the next future. Raises: StopIteration with the result; whatever the coroutine raises."""
    future: asyncio.Future[Any] = coroutine.send(None)
    future._asyncio_future_blocking = False  # as a task does with what it awaits
    return future


def _run_on(coroutine: Coroutine[Any, Any, Any], future: asyncio.Future[Any]) -> None:
    future.add_done_callback(lambda _: _drain(coroutine))


def _drain(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run the rest of the coroutine; its result or error is of no interest any more."""
    try:
        future = _step(coroutine)
    except (StopIteration, Exception, asyncio.CancelledError):
        return
    _run_on(coroutine, future)
