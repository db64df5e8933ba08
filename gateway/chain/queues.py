"""Bounds between the stages of one request: a window on what is in flight, and the queue to the caller."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class CreditWindow:
    """Lets at most `size` units be in flight in a stage.

    gRPC's flow control counts bytes and lets thousands of small messages run ahead of a stalled
    reader; this counts frames or samples.
    """

    def __init__(self, size: int):
        self._size, self._in_flight = size, 0
        self._room = asyncio.Event()
        self._room.set()

    @property
    def in_flight(self) -> int:
        """Units that were acquired and not released."""
        return self._in_flight

    async def acquire(self, units: int) -> None:
        """Wait for room, then take credit for `units`. A batch larger than the window goes when it is empty."""
        while self._in_flight and self._in_flight + units > self._size:
            self._room.clear()
            await self._room.wait()
        self._in_flight += units

    def release(self, units: int) -> None:
        """Give back the credit of `units`."""
        self._in_flight -= units
        self._room.set()


class OutputQueue(Generic[T]):
    """A bounded queue with one reader; an error overtakes whatever still waits in it."""

    def __init__(self, size: int):
        self._items: deque[T] = deque()
        self._size = size
        self._changed = asyncio.Event()  # set whenever either side should look again
        self._closed = False
        self._error: BaseException | None = None

    async def put(self, item: T) -> None:
        """Wait for room, then append."""
        while len(self._items) >= self._size:
            self._changed.clear()
            await self._changed.wait()
        self._items.append(item)
        self._changed.set()

    def post(self, item: T) -> None:
        """Append at once, whatever the size; for few and small items."""
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        """No more items will come."""
        self._closed = True
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """Make the reader raise `error` at once; only the first counts."""
        if self._error is None and not self._closed:
            self._error = error
            self._changed.set()

    async def get(self) -> T | None:
        """The next item, or None when the queue is closed and empty. Raises: what `fail` was given."""
        while True:
            if self._error is not None:
                raise self._error
            if self._items:
                item = self._items.popleft()
                self._changed.set()
                return item
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
