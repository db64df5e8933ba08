"""From a device's threads to the event loop: in order, and a few at a time. Knows no torch and no grpc.

A pass ends for hundreds of streams at once. If one turn of the event loop woke all their tasks, it would take 0.1 s,
and a new call takes gRPC several turns: at a thousand streams calls waited for seconds while the processor was idle at
times. So each turn takes a part of what there is, and turns stay short.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

_MIN_PART = 8  # items of a turn: its own cost does not count then
_PARTS = 64  # that a burst is split into: it must be delivered long before the next one

Item = TypeVar("Item")


class HandOver(Generic[Item]):
    """Passes items to `handle` on the event loop that it was made on."""

    def __init__(self, handle: Callable[[Item], object]):
        self._handle, self._loop = handle, asyncio.get_running_loop()
        self._items: deque[Item] = deque()

    def post(self, items: Iterable[Item]) -> None:
        """From any thread; behind what was posted before. Does nothing when the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._add, items)
        except RuntimeError:
            log.debug("the event loop is closed")

    def _add(self, items: Iterable[Item]) -> None:
        is_idle = not self._items
        self._items.extend(items)
        if is_idle:
            self._hand_over()

    def _hand_over(self) -> None:
        try:
            for _ in range(min(len(self._items), max(_MIN_PART, len(self._items) // _PARTS))):
                try:
                    self._handle(self._items.popleft())
                except Exception:
                    log.exception("what was handed over raised")
        finally:  # the others must not wait for ever, whatever was raised: a CancelledError is no Exception
            if self._items:
                self._loop.call_soon(self._hand_over)
