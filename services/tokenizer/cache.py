"""Frames of clips seen before, by the clip's content. For use on one event loop; knows numpy alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import numpy as np

from services.runtime.audio import Clip

_ENTRY_BYTES = 256  # key, array header and dictionary, roughly


def content_key(clip: Clip) -> bytes:
    """The same samples at the same rate have the same key, whatever container they came in."""
    digest = hashlib.sha256(str(clip.sample_rate_hz).encode())
    digest.update(clip.samples.astype("<f4", copy=False).data)
    return digest.digest()


class FrameCache:
    """Least recently used, bounded in bytes. Callers who ask for a clip at the same time share its making."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.size_bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}

    async def get(self, key: bytes, make: Callable[[], Awaitable[np.ndarray]]) -> tuple[np.ndarray, bool]:
        """(codes [T, K], whether this caller was spared the making). Errors of `make` are not kept.

        A caller who leaves does not disturb the others; when the last one leaves, `make` is cancelled.
        """
        if (codes := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            return codes, True
        flight = self._flights.get(key)
        shared = flight is not None
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._make(key, make)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), shared
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Gone before it ends, so that nobody joins a flight that is being cancelled.
                self._flights.pop(key, None)
                flight.task.cancel()

    async def _make(self, key: bytes, make: Callable[[], Awaitable[np.ndarray]]) -> np.ndarray:
        task = asyncio.current_task()
        try:
            codes = await make()
            self._store(key, codes)
            return codes
        finally:
            if (flight := self._flights.get(key)) is not None and flight.task is task:
                del self._flights[key]

    def _store(self, key: bytes, codes: np.ndarray) -> None:
        if codes.nbytes + _ENTRY_BYTES > self.max_bytes:
            return
        self._entries[key] = codes
        self.size_bytes += codes.nbytes + _ENTRY_BYTES
        while self.size_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= oldest.nbytes + _ENTRY_BYTES


class _Flight:
    """One clip that is being encoded, and how many callers wait for it."""

    def __init__(self, task: asyncio.Future[np.ndarray]):
        self.task, self.waiting = task, 0
