"""Time limits of waits that are nearly always kept, such as for each message of a stream.

`asyncio.timeout` makes a timer for each wait and cancels it again, 5 % of what a message costs. Here all waits of an event
loop share one timer: it is set for the earliest limit of those that waited when it last rang, or for an earlier one since.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType


class TimeLimit:
    """`with TimeLimit(seconds): await …`, as `asyncio.timeout`. Raises: TimeoutError."""

    __slots__ = ("_cancelling", "_is_over", "_seconds", "_task", "_waits")

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __enter__(self) -> TimeLimit:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task, self._cancelling, self._is_over = task, task.cancelling(), False
        self._waits = _waits_of(asyncio.get_running_loop())
        self._waits.add(self, self._waits.loop.time() + self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waits.waiting.pop(self, None)
        # As asyncio.timeout: someone else may have cancelled the task too.
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def reschedule(self, at_s: float) -> None:
        """Move the limit to `at_s` on the event loop's clock. Does nothing once the time or the wait is over."""
        if self in self._waits.waiting:
            self._waits.add(self, at_s)

    def end(self) -> None:
        """The time is over: for _Waits."""
        self._is_over = True
        self._task.cancel()


class _Waits:
    """All of one event loop, and its timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self.waiting: dict[TimeLimit, float] = {}  # → when it ends
        self._timer: asyncio.TimerHandle | None = None

    def add(self, limit: TimeLimit, at_s: float) -> None:
        self.waiting[limit] = at_s
        if self._timer is None or at_s < self._timer.when():
            self._set(at_s)

    def _set(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._timer, now_s = None, self.loop.time()
        for limit in [limit for limit, at_s in self.waiting.items() if at_s <= now_s]:
            del self.waiting[limit]
            limit.end()
        if self.waiting:
            self._set(min(self.waiting.values()))


class _OfThread(threading.local):
    waits: _Waits | None = None


_of_thread = _OfThread()


def _waits_of(loop: asyncio.AbstractEventLoop) -> _Waits:
    if (waits := _of_thread.waits) is None or waits.loop is not loop:
        waits = _of_thread.waits = _Waits(loop)
    return waits
