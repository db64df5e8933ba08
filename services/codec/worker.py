"""One plain thread owns the decoder; streams on the event loop hand it frames and get audio back.

Deadline order: each pass is chosen from all that waits then. The stream whose listener will run dry first, or
has been waiting longest, decides how many frames it has (a power of two, so that streams share passes); others
that can bring as many go along. So a first frame waits for the pass that runs, and for who is due before it, whose
message is decoded whole; not for those who are seconds ahead. Nobody waits for ever, since a lead melts by itself.
Threads share two things: the streams' inboxes under one lock, and results that go to the loop by
call_soon_threadsafe. While the device works on a pass, the thread hands over the audio of the one before. Knows
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

from services.codec.line import Audio, Line

log = logging.getLogger(__name__)

# Who has less than this left to play goes along in a pass of fewer frames than are waiting. More than the look-ahead
# of the watermark (375 ms), until which nothing is heard yet.
_CLOSE_S = 0.75
_due = attrgetter("deadline.deadline_s")


class Decoder(Protocol):
    """What the worker needs of a SlotDecoder."""

    slots: int
    max_chunk_frames: int
    most_streams: int  # of a pass; more would be several, one behind the other
    overlaps: bool  # whether begin() returns before its pass is done, with time for other work

    def reset(self, slot: int) -> None: ...
    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]: ...


class WorkerError(Exception):
    """The worker is gone; no stream goes on and none can be opened."""


@dataclass(frozen=True)
class _Done:
    """A pass whose audio is not handed over yet."""

    lines: list[Line]
    frames: int  # of each
    audio: list[np.ndarray]  # of each line
    seconds: float


class DecodeWorker:
    """Runs `decoder` in a thread of its own from `start` to `close`. Methods are for the event loop.

    frame_s: seconds of speech in a frame.
    max_backlog_frames: frames of one stream that may be inside: waiting, decoded or not yet read.
    stall_s: a pass that lasts longer counts as stuck.
    """

    def __init__(self, decoder: Decoder, *, frame_s: float, max_backlog_frames: int = 128, stall_s: float = 30.0):
        self._decoder, self._frame_s = decoder, frame_s
        self._max_backlog_frames, self._stall_s = max_backlog_frames, stall_s
        self._work = threading.Condition()
        self._streams: dict[Line, DecodeStream] = {}
        self._closed_lines: list[Line] = []
        self._free = list(range(decoder.slots))
        self._stopping = False
        self._failure: Exception | None = None
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="codec-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; results go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End all streams and the thread; waits for the pass that is running."""
        with self._work:
            self._stopping = True
            self._work.notify()
        await asyncio.to_thread(self._thread.join)
        for stream in list(self._streams.values()):
            stream.fail(WorkerError("the codec is shutting down"))

    def open(self) -> DecodeStream:
        """A new stream; the caller must close() it. Raises: WorkerError, or RuntimeError beyond the slots."""
        if self._failure is not None or self._stopping:
            raise WorkerError(str(self._failure or "the codec is shutting down"))
        if len(self._streams) >= self._decoder.slots:
            raise RuntimeError(f"more than {self._decoder.slots} streams")
        line = Line(self._frame_s, time.monotonic())
        stream = DecodeStream(self, line, self._max_backlog_frames)
        with self._work:
            self._streams[line] = stream
        return stream

    @property
    def active(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def is_live(self) -> bool:
        """False when the thread is gone or stuck: only a restart helps."""
        if self._failure is not None or not self._thread.is_alive():
            return False
        since = self._busy_since
        return since is None or time.monotonic() - since < self._stall_s

    # The stream's half of the two shared things.

    def _submit(self, line: Line, codes: np.ndarray) -> None:
        with self._work:
            line.give(codes)
            self._work.notify()

    def _release(self, line: Line) -> None:
        with self._work:
            if self._streams.pop(line, None) is not None:
                self._closed_lines.append(line)

    # The thread.

    def _run(self) -> None:
        done: _Done | None = None
        try:
            while (batch := self._next(done is None)) is not None:
                if batch:
                    self._busy_since = time.monotonic()
                    began_s = time.perf_counter()
                    result = self._decoder.begin([(line.slot, codes) for line, codes in batch])
                    if done is not None:
                        self._answer(done)
                    audio = result()
                    seconds = time.perf_counter() - began_s
                    done = _Done([line for line, _ in batch], len(batch[0][1]), audio, seconds)
                if not batch or not self._decoder.overlaps:
                    self._answer(done)
                    done = None
                    self._busy_since = None
        except Exception as error:  # whatever it was: the state in the slots is lost
            log.exception("the codec's worker died")
            failure = WorkerError(f"the codec's worker died ({type(error).__name__}: {error})")
            self._failure = failure
            self._post(lambda: [stream.fail(failure) for stream in list(self._streams.values())])

    def _next(self, blocking: bool) -> list[tuple[Line, np.ndarray]] | None:
        """The next pass, lines and as many frames of each; empty only if not `blocking`; None when it is time to stop."""
        with self._work:
            while True:
                if self._stopping:
                    return None
                lines = [line for line in self._streams if line.waiting]
                if lines or not blocking:
                    break
                self._work.wait()
            self._free += [line.slot for line in self._closed_lines if line.slot is not None]
            self._closed_lines.clear()
            if not lines:
                return []
            now_s = time.monotonic()
            chosen, frames = self._choose(lines, now_s)
            for line in chosen:
                if line.slot is None:
                    line.slot = self._free.pop()
                    self._decoder.reset(line.slot)
            return [(line, line.take(frames, now_s)) for line in chosen]

    def _choose(self, lines: list[Line], now_s: float) -> tuple[list[Line], int]:
        """Of all that have frames waiting: those of the next pass, the most urgent first, and how many frames of each."""
        most, close_s = self._decoder.max_chunk_frames, now_s + _CLOSE_S
        frames = min(lines, key=_due).next_frames(most)
        end = 2 * frames if 2 * frames <= most else math.inf  # from there on they could bring more
        fitting = [
            line
            for line in lines
            if frames <= (waiting := line.waiting) and (waiting < end or line.deadline.deadline_s < close_s)
        ]
        return nsmallest(self._decoder.most_streams, fitting, key=_due), frames

    def _answer(self, done: _Done) -> None:
        """Hand over the audio of a pass."""
        # Copies: else a reader that lags keeps the memory of all that shared its passes.
        audio = [samples.copy() for samples in done.audio]
        with self._work:
            answers = [
                (line, answer)
                for line, samples in zip(done.lines, audio, strict=True)
                for answer in line.put(samples, done.frames, done.seconds)
            ]
        if answers:
            self._post(lambda: self._hand_over(answers))

    def _hand_over(self, answers: list[tuple[Line, Audio]]) -> None:
        for line, answer in answers:
            if (stream := self._streams.get(line)) is not None:
                stream._receive(answer)

    def _post(self, call) -> None:
        """Run `call` on the loop; a loop that is closed has nobody left to tell."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            log.debug("the event loop is gone")


class DecodeStream:
    """One utterance: `feed` frames, `finish`, iterate over Audio (one for each feed), `close`.

    Feeding and reading may go on in two tasks.
    """

    def __init__(self, worker: DecodeWorker, line: Line, max_backlog_frames: int):
        self._worker, self._line, self._max_backlog_frames = worker, line, max_backlog_frames
        self._sizes: deque[int] = deque()  # frames of each feed that is not read yet
        self._ready: deque[Audio] = deque()
        self._finished = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def feed(self, codes: np.ndarray) -> None:
        """Hand over frames [n, K], n ≥ 1; waits while too many are inside. Raises: WorkerError."""
        while self._error is None and self._sizes and sum(self._sizes) + len(codes) > self._max_backlog_frames:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        self._sizes.append(len(codes))
        self._worker._submit(self._line, codes)

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
        """Give the slot back at once, whatever is still inside."""
        self._worker._release(self._line)

    def _receive(self, audio: Audio) -> None:
        self._ready.append(audio)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._changed.set()
