"""How many calls may be inside at once. Admission happens before a call's first message, per method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from services.runtime.errors import CallError, Overloaded

T = TypeVar("T")


class Admission:
    """Counts calls in; refuses beyond `limit`. For use on one event loop.

    `maximum_concurrent_rpcs` of a gRPC server would do the same to health checks, so it is never set.
    """

    def __init__(self, what: str, limit: int, *, retry_after_s: float = 1.0):
        self.what, self.limit, self.retry_after_s = what, limit, retry_after_s
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place while the block runs. Raises: Overloaded when none is free."""
        if self.inside >= self.limit:
            raise Overloaded(f"{self.what}: all {self.limit} places are taken", self.retry_after_s)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class Openings:
    """Streams that were opened and have said nothing yet. They hold no slot, so they are bounded on their own."""

    def __init__(self, what: str, limit: int, *, within_s: float = 10.0):
        """limit: beyond it a stream is refused at once. within_s: how long one may say nothing."""
        self._waiting, self._within_s = Admission(f"{what} without a first message", limit), within_s

    async def first(self, requests: AsyncIterator[T]) -> T | None:
        """The first message of a stream; None when it ends without one. Raises: Overloaded, CallError (ABORTED)."""
        with self._waiting.enter():
            try:
                async with asyncio.timeout(self._within_s):
                    return await anext(requests, None)
            except TimeoutError:
                text = f"no first message came within {self._within_s:g} s"
                raise CallError(grpc.StatusCode.ABORTED, text, reason="NOTHING_SENT") from None
