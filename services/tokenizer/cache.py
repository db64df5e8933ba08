"""Codes of clips seen before, keyed by content. For use on one event loop; knows no torch."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import numpy as np

from services.runtime.audio import Clip

_ENTRY_BYTES = 256  # key, array header and dictionary, roughly


def content_key(clip: Clip) -> bytes:
    """Equal for the same samples at the same rate, whatever container they came in."""
    digest = hashlib.sha256(str(clip.sample_rate_hz).encode())
    digest.update(clip.samples.astype("<f4", copy=False).data)
    return digest.digest()


class FrameCache:
    """Least recently used, bounded in bytes. Concurrent requests for one clip share one encoding."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.size_bytes = max_bytes, 0
        self._entries: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._in_flight: dict[bytes, _Encoding] = {}

    async def get(self, key: bytes, make: Callable[[], Awaitable[np.ndarray]]) -> tuple[np.ndarray, bool]:
        """(codes [T, K], whether they came from the cache or an encoding in flight). Errors of `make` are not kept.

        A cancelled caller does not disturb the others; when the last one is cancelled, `make` is.
        """
        if (codes := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            return codes, True
        encoding = self._in_flight.get(key)
        shared = encoding is not None
        if encoding is None:
            encoding = self._in_flight[key] = _Encoding(asyncio.ensure_future(self._make(key, make)))
        encoding.waiters += 1
        try:
            return await asyncio.shield(encoding.task), shared
        finally:
            encoding.waiters -= 1
            if not encoding.waiters and not encoding.task.done():
                # Removed at once, so that no later caller joins an encoding that is being cancelled.
                self._in_flight.pop(key, None)
                encoding.task.cancel()

    async def _make(self, key: bytes, make: Callable[[], Awaitable[np.ndarray]]) -> np.ndarray:
        task = asyncio.current_task()
        try:
            codes = await make()
            self._store(key, codes)
            return codes
        finally:
            if (encoding := self._in_flight.get(key)) is not None and encoding.task is task:
                del self._in_flight[key]

    def _store(self, key: bytes, codes: np.ndarray) -> None:
        if codes.nbytes + _ENTRY_BYTES > self.max_bytes:
            return
        self._entries[key] = codes
        self.size_bytes += codes.nbytes + _ENTRY_BYTES
        while self.size_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= oldest.nbytes + _ENTRY_BYTES


class _Encoding:
    """One clip being encoded, and its count of waiting callers."""

    def __init__(self, task: asyncio.Future[np.ndarray]):
        self.task, self.waiters = task, 0
