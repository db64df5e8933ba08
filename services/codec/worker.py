"""One thread owns the decoder; streams on the event loop hand it frames and get audio back.

Earliest deadline first: each pass is chosen from all queued frames. The stream with the earliest playback deadline
sets the number of frames of the pass, a power of two. Other streams that can bring as many frames share the pass.
A first frame therefore waits for the running pass and for streams with an earlier deadline. A message that needs
several passes is decoded whole before streams with a later deadline. A deadline does not move while its stream
waits, so no stream starves.

The threads share the streams' frame queues, under one lock; results return to the event loop by
call_soon_threadsafe. While the device computes a pass, the thread delivers the audio of the previous one. Knows
neither grpc nor torch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter
from typing import Protocol

import numpy as np

from services.codec.frame_queue import Audio, FrameQueue

log = logging.getLogger(__name__)

# A stream whose deadline is closer than this joins a pass of fewer frames than it has queued. Longer than the
# look-ahead of the watermark (375 ms), before which the listener gets nothing.
_CLOSE_S = 0.75
_deadline = attrgetter("deadline.deadline_s")


class Decoder(Protocol):
    """What the worker needs of a SlotDecoder."""

    slots: int
    max_chunk_frames: int
    max_batch: int  # streams per pass
    overlaps: bool  # whether begin() returns before its pass is done

    def reset(self, slot: int) -> None: ...
    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]: ...


class WorkerError(Exception):
    """The worker has ended; its streams fail and none can be opened."""


@dataclass(frozen=True)
class _FinishedPass:
    """A pass whose audio is not delivered yet."""

    queues: list[FrameQueue]
    frames: int  # of each stream
    audio: list[np.ndarray]  # of each stream
    seconds: float


class DecodeWorker:
    """Runs `decoder` in its own thread from `start` to `close`. Call its methods on the event loop.

    frame_s: duration of a frame.
    max_backlog_frames: of one stream, in all: queued, decoded and not yet read.
    stall_s: a pass that lasts longer counts as stuck.
    """

    def __init__(self, decoder: Decoder, *, frame_s: float, max_backlog_frames: int = 128, stall_s: float = 30.0):
        self._decoder, self._frame_s = decoder, frame_s
        self._max_backlog_frames, self._stall_s = max_backlog_frames, stall_s
        self._changed = threading.Condition()
        self._streams: dict[FrameQueue, DecodeStream] = {}
        self._closed_queues: list[FrameQueue] = []
        self._free_slots = list(range(decoder.slots))
        self._stopping = False
        self._failure: Exception | None = None
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="codec-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End all streams and the thread; waits for the running pass."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        for stream in list(self._streams.values()):
            stream.fail(WorkerError("the codec is shutting down"))

    def open(self, *, discard_frames: int = 0, buffered_s: float = 0.0) -> DecodeStream:
        """A new stream; the caller must close() it.

        discard_frames: first frames whose audio the listener already has; they are decoded for the state alone
            and do not advance the deadline. buffered_s: audio that the listener has still to play.

        Raises: WorkerError, or RuntimeError beyond the slots.
        """
        if self._failure is not None or self._stopping:
            raise WorkerError(str(self._failure or "the codec is shutting down"))
        if len(self._streams) >= self._decoder.slots:
            raise RuntimeError(f"more than {self._decoder.slots} streams")
        queue = FrameQueue(self._frame_s, time.monotonic() + buffered_s, discard_frames=discard_frames)
        stream = DecodeStream(self, queue, self._max_backlog_frames)
        with self._changed:
            self._streams[queue] = stream
        return stream

    @property
    def active(self) -> int:
        """Open streams."""
        return len(self._streams)

    def is_live(self) -> bool:
        """False when the thread has ended or is stuck: the process must be restarted."""
        if self._failure is not None or not self._thread.is_alive():
            return False
        since = self._busy_since
        return since is None or time.monotonic() - since < self._stall_s

    # For DecodeStream, on the event loop.

    def _submit(self, queue: FrameQueue, codes: np.ndarray) -> None:
        with self._changed:
            queue.enqueue(codes)
            self._changed.notify()

    def _release(self, queue: FrameQueue) -> None:
        with self._changed:
            if self._streams.pop(queue, None) is not None:
                self._closed_queues.append(queue)

    # In the thread.

    def _run(self) -> None:
        finished: _FinishedPass | None = None
        try:
            while (batch := self._next_batch(finished is None)) is not None:
                if batch:
                    self._busy_since = time.monotonic()
                    began_s = time.perf_counter()
                    result = self._decoder.begin([(slot, codes) for _, slot, codes in batch])
                    if finished is not None:
                        self._publish(finished)
                    audio = result()
                    seconds = time.perf_counter() - began_s
                    finished = _FinishedPass([queue for queue, _, _ in batch], len(batch[0][2]), audio, seconds)
                if finished is not None and (not batch or not self._decoder.overlaps):
                    self._publish(finished)
                    finished = None
                    self._busy_since = None
        except Exception as error:  # of any kind: the state in the slots is lost
            log.exception("the codec's worker died")
            failure = WorkerError(f"the codec's worker died ({type(error).__name__}: {error})")
            self._failure = failure
            self._post(lambda: self._fail_all(failure))

    def _next_batch(self, blocking: bool) -> list[tuple[FrameQueue, int, np.ndarray]] | None:
        """Take the next pass's frames: (queue, slot, codes [n, K]) of each stream, n the same for all.

        Empty when nothing is queued and not `blocking`; None when the worker stops. Side effect: assigns slots.
        """
        with self._changed:
            while True:
                if self._stopping:
                    return None
                queues = [queue for queue in self._streams if queue.queued_frames]
                if queues or not blocking:
                    break
                self._changed.wait()
            self._free_slots += [queue.slot for queue in self._closed_queues if queue.slot is not None]
            self._closed_queues.clear()
            if not queues:
                return []
            now_s = time.monotonic()
            selected, frames = self._select(queues, now_s)
            batch = []
            for queue in selected:
                if queue.slot is None:
                    queue.slot = self._free_slots.pop()
                    self._decoder.reset(queue.slot)
                batch.append((queue, queue.slot, queue.dequeue(frames, now_s)))
            return batch

    def _select(self, queues: list[FrameQueue], now_s: float) -> tuple[list[FrameQueue], int]:
        """The streams of the next pass, earliest deadline first, and the frames that each brings."""
        limit, close_s = self._decoder.max_chunk_frames, now_s + _CLOSE_S
        frames = min(queues, key=_deadline).next_frames(limit)
        too_many = 2 * frames if 2 * frames <= limit else math.inf  # streams with that many fit a longer pass
        fitting = [
            queue
            for queue in queues
            if frames <= queue.queued_frames and (queue.queued_frames < too_many or queue.deadline.deadline_s < close_s)
        ]
        return nsmallest(self._decoder.max_batch, fitting, key=_deadline), frames

    def _publish(self, finished: _FinishedPass) -> None:
        """Hand a pass's audio to its streams."""
        # Copies: otherwise a slow reader keeps the memory of all streams of its passes.
        audio = [samples.copy() for samples in finished.audio]
        with self._changed:
            answers = [
                (queue, answer)
                for queue, samples in zip(finished.queues, audio, strict=True)
                for answer in queue.complete(samples, finished.frames, finished.seconds)
            ]
        if answers:
            self._post(lambda: self._deliver(answers))

    def _deliver(self, answers: list[tuple[FrameQueue, Audio]]) -> None:
        for queue, answer in answers:
            if (stream := self._streams.get(queue)) is not None:
                stream._receive(answer)

    def _fail_all(self, failure: WorkerError) -> None:
        for stream in list(self._streams.values()):
            stream.fail(failure)

    def _post(self, call: Callable[[], object]) -> None:
        """Run `call` on the event loop; does nothing when the loop is closed."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("the event loop is closed")


class DecodeStream:
    """One utterance: `feed` frames, `finish`, iterate over Audio (one for each feed), `close`.

    One task may feed while another reads.
    """

    def __init__(self, worker: DecodeWorker, queue: FrameQueue, max_backlog_frames: int):
        self._worker, self._queue, self._max_backlog_frames = worker, queue, max_backlog_frames
        self._sizes: deque[int] = deque()  # frames of each feed that is not read yet
        self._ready: deque[Audio] = deque()
        self._finished = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def feed(self, codes: np.ndarray) -> None:
        """Queue frames [n, K], n ≥ 1; waits while the backlog is full. Raises: WorkerError."""
        while self._error is None and self._sizes and sum(self._sizes) + len(codes) > self._max_backlog_frames:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        self._sizes.append(len(codes))
        self._worker._submit(self._queue, codes)

    def finish(self) -> None:
        """No more frames will come."""
        self._finished = True
        self._changed.set()

    def __aiter__(self) -> DecodeStream:
        return self

    async def __anext__(self) -> Audio:
        while True:
            if self._error is not None:
                raise self._error
            if self._ready:
                self._sizes.popleft()
                self._changed.set()
                return self._ready.popleft()
            if self._finished and not self._sizes:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """Free the slot at once; drops queued frames and undelivered audio."""
        self._worker._release(self._queue)

    def _receive(self, audio: Audio) -> None:
        self._ready.append(audio)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End the stream: readers and feeders get the error."""
        self._error = error
        self._changed.set()
