"""Threads for long work off the event loop, and whether one of them is stuck. Knows no torch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Pool:
    """Runs jobs in `threads` threads. Admission bounds how many wait, not the pool."""

    def __init__(self, name: str, threads: int, *, stall_s: float = float("inf")):
        """name: prefix of the threads' names. stall_s: a job that takes longer counts as stuck."""
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._stall_s = stall_s
        self._began: dict[int, float] = {}  # thread → when its job began

    async def run(self, job: Callable[[], T]) -> tuple[T, float]:
        """The job's result, and the seconds it took. A cancel does not wait for a job that runs.

        Raises: what the job raises; RuntimeError once the pool is closed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, job)

    def is_live(self) -> bool:
        """False when a job has run for longer than `stall_s`."""
        now = time.monotonic()
        return all(now - began <= self._stall_s for began in list(self._began.values()))

    def close(self) -> None:
        """Drop waiting jobs; running ones end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, job: Callable[[], T]) -> tuple[T, float]:
        began = time.monotonic()
        self._began[threading.get_ident()] = began
        try:
            return job(), time.monotonic() - began
        finally:
            del self._began[threading.get_ident()]
