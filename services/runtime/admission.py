"""Bounds how many calls are in flight. Admission comes before a call's first message, per method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from services.runtime.errors import CallError, ResourceExhausted

T = TypeVar("T")


class Admission:
    """A counting semaphore that refuses instead of waiting. For use on one event loop.

    `maximum_concurrent_rpcs` of a gRPC server would refuse health checks too, so it is never set.
    """

    def __init__(self, what: str, limit: int, *, retry_after_s: float = 1.0):
        """what: the noun of the error message, such as "codec streams"."""
        self.what, self.limit, self.retry_after_s = what, limit, retry_after_s
        self.in_flight = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a permit while the block runs. Raises: ResourceExhausted when all are in use."""
        if self.in_flight >= self.limit:
            raise ResourceExhausted(f"{self.what}: all {self.limit} permits are in use", self.retry_after_s)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class PendingStreams:
    """Streams that were opened and have sent no message yet. They hold no slot, so they have a bound of their own."""

    def __init__(self, what: str, limit: int, *, timeout_s: float = 10.0):
        """limit: a stream beyond it is refused at once. timeout_s: time for the first message."""
        self._pending, self._timeout_s = Admission(f"{what} without a first message", limit), timeout_s

    async def first_message(self, requests: AsyncIterator[T]) -> T | None:
        """The first message of a stream; None when it ends without one.

        Raises: ResourceExhausted; CallError (ABORTED) when none comes in time.
        """
        with self._pending.enter():
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await anext(requests, None)
            except TimeoutError:
                text = f"no first message came within {self._timeout_s:g} s"
                raise CallError(grpc.StatusCode.ABORTED, text, reason="NOTHING_SENT") from None
