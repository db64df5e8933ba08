"""The threads that own a stage's device. They take the most urgent work themselves, so the device never waits for the event loop.

A stage is a Source: under the loop's lock it chooses the next pass, starts it, and hands its output back. What has to
run on the event loop goes there once a pass (hand_over.py). While the device computes a pass, an overlapping loop
delivers the one before. Knows neither grpc nor torch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from services.engine.hand_over import HandOver

log = logging.getLogger(__name__)

Call = Callable[[], object]

Batch = TypeVar("Batch")
Output = TypeVar("Output")


class Source(Protocol[Batch, Output]):
    """Gives a DeviceLoop its passes. The calls that these methods return are made on the event loop, in order."""

    def take(self) -> Batch | None:
        """Remove the most urgent work and return it; None when none waits. Under the loop's lock."""

    def begin(self, batch: Batch) -> Callable[[], Output]:
        """Start its pass. Returns: waits for the pass and returns its output."""

    def complete(self, batch: Batch, output: Output, seconds: float) -> Sequence[Call]:
        """Take a pass's output. seconds: duration of the pass."""

    def fail(self, batch: Batch, error: BaseException) -> Sequence[Call]:
        """`begin`, the wait or `complete` raised. Raises: what ends the loop, when the device's state is lost."""

    def end(self, error: Exception) -> None:
        """The loop has ended: fail all that waits. On the event loop."""


class LoopClosed(Exception):
    """The loop was closed."""


@dataclass
class _Pass(Generic[Batch, Output]):
    batch: Batch
    collect: Callable[[], Output]
    began_s: float
    output: Output | None = None
    seconds: float = 0.0


class DeviceLoop(Generic[Batch, Output]):
    """Runs a source's passes from `serve` to `close`.

    changed: the lock of all that waits; the source notifies it of new work.
    """

    def __init__(self, name: str, *, threads: int = 1, overlaps: bool = False, stall_s: float = float("inf")):
        """
        name: of the threads. threads: passes in flight, each in its own thread.
        overlaps: whether a source's begin() returns before its pass is done, so that the output of the pass before
            is delivered meanwhile. stall_s: a pass that takes longer counts as stuck.
        """
        self.changed = threading.Condition()
        self.failure: Exception | None = None  # what ended the loop
        self._name, self._overlaps, self._stall_s = name, overlaps, stall_s
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        self._busy_since: dict[int, float] = {}  # thread → when its pass began

    def serve(self, source: Source[Batch, Output]) -> None:
        """Start the threads. Call on the event loop that gets the results."""
        self._source, self._hand_over = source, HandOver(_make)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Fail what waits. A running pass ends by itself and is delivered. Call on the event loop."""
        self._stop(LoopClosed(f"{self._name} is shutting down"))
        self._source.end(self.failure or LoopClosed())

    async def wait_closed(self) -> None:
        """Wait for the running passes after `close`."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def is_live(self) -> bool:
        """False when the loop has ended or a pass is stuck: the process must be restarted."""
        if self.failure is not None:
            return False
        now_s = time.monotonic()
        return all(now_s - since < self._stall_s for since in list(self._busy_since.values()))

    def post(self, calls: Sequence[Call]) -> None:
        """Make `calls` on the event loop, from any thread; does nothing when that is closed."""
        if calls:
            self._hand_over.post(calls)

    def _stop(self, failure: Exception) -> None:
        with self.changed:
            self.failure = self.failure or failure
            self.changed.notify_all()

    # In the threads.

    def _run(self) -> None:
        thread = threading.get_ident()
        finished: _Pass[Batch, Output] | None = None  # its output is not delivered yet
        try:
            while (batch := self._next(blocking=finished is None)) is not None or finished is not None:
                running = None
                if batch is not None:
                    self._busy_since[thread] = time.monotonic()
                    running = self._begin(batch)
                if finished is not None:
                    self._deliver(finished)
                    finished = None
                if running is not None and self._collect(running):
                    if self._overlaps:
                        finished = running
                    else:
                        self._deliver(running)
                if finished is None:
                    self._busy_since.pop(thread, None)
                del batch, running  # else the callers' data would stay until the next pass
        except Exception as error:
            log.exception("%s died", self._name)
            failure = error
            self._stop(failure)
            self.post([lambda: self._source.end(failure)])
        finally:
            self._busy_since.pop(thread, None)

    def _next(self, blocking: bool) -> Batch | None:
        """The next pass's work; None when there is none and not `blocking`, or when the loop has ended."""
        with self.changed:
            while self.failure is None:
                batch = self._source.take()
                if batch is not None or not blocking:
                    return batch
                self.changed.wait()
            return None

    def _begin(self, batch: Batch) -> _Pass[Batch, Output] | None:
        began_s = time.perf_counter()
        try:
            return _Pass(batch, self._source.begin(batch), began_s)
        except BaseException as error:
            self._fail(batch, error)
            return None

    def _collect(self, running: _Pass[Batch, Output]) -> bool:
        try:
            running.output = running.collect()
        except BaseException as error:
            self._fail(running.batch, error)
            return False
        running.seconds = time.perf_counter() - running.began_s
        return True

    def _deliver(self, finished: _Pass[Batch, Output]) -> None:
        try:
            calls = self._source.complete(finished.batch, cast(Output, finished.output), finished.seconds)
        except BaseException as error:
            self._fail(finished.batch, error)
            return
        self.post(calls)

    def _fail(self, batch: Batch, error: BaseException) -> None:
        self.post(self._source.fail(batch, error))


def _make(call: Call) -> None:
    call()
