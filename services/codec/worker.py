"""Streams on the event loop hand frames to the decoder's loop and get audio back.

Earliest deadline first: each pass is chosen from all queued frames. The stream with the earliest playback deadline
sets the number of frames of the pass, a power of two. Other streams that can bring as many frames share the pass.
A first frame therefore waits for the running pass and for streams with an earlier deadline. A message that needs
several passes is decoded whole before streams with a later deadline. A deadline does not move while its stream
waits, so no stream starves.

The frame queues are shared with the loop's thread (services/engine/loop.py), under its lock. Knows neither grpc nor
torch.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import Protocol

import numpy as np

from services.codec.frame_queue import Audio, FrameQueue
from services.engine.loop import Call, DeviceLoop, LoopClosed

Batch = list[tuple[FrameQueue, int, np.ndarray]]  # queue, slot and codes [n, K] of each stream, n the same for all

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


class DecodeWorker:
    """Decodes the frames of streams, from `start` to `close`. Call its methods on the event loop.

    frame_s: duration of a frame.
    max_backlog_frames: of one stream, in all: queued, decoded and not yet read.
    stall_s: a pass that lasts longer counts as stuck. clock: gives the seconds that deadlines are in.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        frame_s: float,
        max_backlog_frames: int = 128,
        stall_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._decoder, self._frame_s, self._clock = decoder, frame_s, clock
        self._max_backlog_frames = max_backlog_frames
        self._loop: DeviceLoop[Batch, list[np.ndarray]] = DeviceLoop(
            "codec", overlaps=decoder.overlaps, stall_s=stall_s
        )
        self._streams: dict[FrameQueue, DecodeStream] = {}
        self._closed_queues: list[FrameQueue] = []
        self._free_slots = list(range(decoder.slots))

    def start(self) -> None:
        """Start the thread; results go to the running event loop."""
        self._loop.serve(self)

    async def close(self) -> None:
        """End all streams and the thread; waits for the running pass."""
        self._loop.close()
        await self._loop.wait_closed()

    def open(self, *, discard_frames: int = 0, buffered_s: float = 0.0) -> DecodeStream:
        """A new stream; the caller must close() it.

        discard_frames: first frames whose audio the listener already has; they are decoded for the state alone
            and do not advance the deadline. buffered_s: audio that the listener has still to play.

        Raises: WorkerError, or RuntimeError beyond the slots.
        """
        if self._loop.failure is not None:
            raise _as_worker_error(self._loop.failure)
        if len(self._streams) >= self._decoder.slots:
            raise RuntimeError(f"more than {self._decoder.slots} streams")
        queue = FrameQueue(self._frame_s, self._clock() + buffered_s, discard_frames=discard_frames)
        stream = DecodeStream(self, queue, self._max_backlog_frames)
        with self._loop.changed:
            self._streams[queue] = stream
        return stream

    @property
    def active(self) -> int:
        """Open streams."""
        return len(self._streams)

    def is_live(self) -> bool:
        """False when the loop has ended or is stuck: the process must be restarted."""
        return self._loop.is_live()

    # For DecodeStream, on the event loop.

    def _submit(self, queue: FrameQueue, codes: np.ndarray) -> None:
        with self._loop.changed:
            queue.enqueue(codes)
            self._loop.changed.notify()

    def _release(self, queue: FrameQueue) -> None:
        with self._loop.changed:
            if self._streams.pop(queue, None) is not None:
                self._closed_queues.append(queue)

    # For the loop: see engine.loop.Source.

    def take(self) -> Batch | None:
        """Side effect: assigns slots."""
        queues = [queue for queue in self._streams if queue.queued_frames]
        if not queues:
            return None
        self._free_slots += [queue.slot for queue in self._closed_queues if queue.slot is not None]
        self._closed_queues.clear()
        now_s = self._clock()
        selected, frames = self._select(queues, now_s)
        batch = []
        for queue in selected:
            if queue.slot is None:
                queue.slot = self._free_slots.pop()
                self._decoder.reset(queue.slot)
            batch.append((queue, queue.slot, queue.dequeue(frames, now_s)))
        return batch

    def begin(self, batch: Batch) -> Callable[[], list[np.ndarray]]:
        return self._decoder.begin([(slot, codes) for _, slot, codes in batch])

    def complete(self, batch: Batch, output: list[np.ndarray], seconds: float) -> Sequence[Call]:
        # Copies: otherwise a slow reader keeps the memory of all streams of its passes.
        audio = [samples.copy() for samples in output]
        with self._loop.changed:
            answers = [
                (queue, answer)
                for (queue, _, codes), samples in zip(batch, audio, strict=True)
                for answer in queue.complete(samples, len(codes), seconds)
            ]
        return [partial(self._deliver, queue, answer) for queue, answer in answers]

    def fail(self, batch: Batch, error: BaseException) -> Sequence[Call]:
        """Ends the loop: the state in the slots is lost."""
        raise error

    def end(self, error: Exception) -> None:
        for stream in list(self._streams.values()):
            stream.fail(_as_worker_error(error))

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

    def _deliver(self, queue: FrameQueue, answer: Audio) -> None:
        if (stream := self._streams.get(queue)) is not None:
            stream._receive(answer)


def _as_worker_error(error: Exception) -> WorkerError:
    if isinstance(error, LoopClosed):
        return WorkerError("the codec is shutting down")
    return WorkerError(f"the codec's worker died ({type(error).__name__}: {error})")


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
