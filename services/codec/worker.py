"""One plain thread owns the decoder; streams on the event loop hand it frames and get audio back.

A tick takes whatever streams have frames waiting, a power of two of each (so that streams share
passes), shortest first. Threads share two things: the streams' inboxes under one lock, and results
that go to the loop by call_soon_threadsafe. While the device works on a pass, the thread hands over the
audio of the one before, and puts together the next. Knows neither grpc nor torch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """What the worker needs of a SlotDecoder."""

    slots: int
    max_chunk_frames: int
    overlaps: bool  # whether begin() returns before its pass is done, with time for other work

    def reset(self, slot: int) -> None: ...
    def begin(self, batch: Sequence[tuple[int, np.ndarray]]) -> Callable[[], list[np.ndarray]]: ...


class WorkerError(Exception):
    """The worker is gone; no stream goes on and none can be opened."""


@dataclass(frozen=True)
class Audio:
    """Audio of the frames of one `feed`. samples: float32 [n * samples_per_frame].

    compute_s: time of the passes that this stream took part in since its last Audio. wait_s: time
    from the `feed` to the samples that was not spent in them.
    """

    samples: np.ndarray
    compute_s: float
    wait_s: float


class _Line:
    """The thread's side of a stream: frames waiting, audio not handed over yet."""

    def __init__(self) -> None:
        self.slot: int | None = None
        self.waiting = 0  # frames that are in no pass yet
        self.owed: deque[tuple[int, float]] = deque()  # frames of each feed that is not answered yet, and when it came
        self.closed = False
        self._codes: deque[np.ndarray] = deque()  # each [n, K], `waiting` frames in all
        self._audio: list[np.ndarray] = []  # decoded and not answered, `_decoded` frames in all
        self._decoded = 0
        self._compute_s = 0.0

    def give(self, codes: np.ndarray) -> None:
        """One more feed, [n, K]."""
        self.owed.append((len(codes), time.perf_counter()))
        self._codes.append(codes)
        self.waiting += len(codes)

    def take(self, most: int) -> np.ndarray:
        """The next frames, [n, K]: the largest power of two that is waiting and no more than `most`."""
        count = 1 << (min(self.waiting, most).bit_length() - 1)
        self.waiting -= count
        taken: list[np.ndarray] = []
        while count:
            codes = self._codes.popleft()
            if len(codes) > count:
                self._codes.appendleft(codes[count:])
                codes = codes[:count]
            taken.append(codes)
            count -= len(codes)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def put(self, samples: np.ndarray, frames: int, seconds: float) -> list[Audio]:
        """Take a pass's samples [frames * samples_per_frame]; the answers that are complete now."""
        per_frame = len(samples) // frames
        self._audio.append(samples)
        self._decoded += frames
        self._compute_s += seconds
        answers = []
        while self.owed and self.owed[0][0] <= self._decoded:
            count, fed_s = self.owed.popleft()
            wait_s = max(0.0, time.perf_counter() - fed_s - self._compute_s)
            audio = self._audio[0] if len(self._audio) == 1 else np.concatenate(self._audio)
            answers.append(Audio(audio[: count * per_frame], self._compute_s, wait_s))
            self._decoded -= count
            self._audio = [audio[count * per_frame :]] if self._decoded else []
            self._compute_s = 0.0
        return answers


@dataclass(frozen=True)
class _Pass:
    """A pass under way. result: waits for it, gives the samples of each line."""

    lines: list[_Line]
    frames: int  # of each
    began_s: float
    result: Callable[[], list[np.ndarray]]


class DecodeWorker:
    """Runs `decoder` in a thread of its own from `start` to `close`. Methods are for the event loop.

    max_backlog_frames: frames of one stream that may be inside: waiting, decoded or not yet read.
    stall_s: a tick that lasts longer counts as stuck.
    """

    def __init__(self, decoder: Decoder, *, max_backlog_frames: int = 128, stall_s: float = 30.0):
        self._decoder = decoder
        self._max_backlog_frames, self._stall_s = max_backlog_frames, stall_s
        self._work = threading.Condition()
        self._streams: dict[_Line, DecodeStream] = {}
        self._closed_lines: list[_Line] = []
        self._free = list(range(decoder.slots))
        self._stopping = False
        self._failure: Exception | None = None
        self._busy_since: float | None = None
        self._finished_s = 0.0  # when the last pass was done
        self._thread = threading.Thread(target=self._run, name="codec-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread; results go to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End all streams and the thread; waits for the tick that is running."""
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
        line = _Line()
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

    def _submit(self, line: _Line, codes: np.ndarray) -> None:
        with self._work:
            line.give(codes)
            self._work.notify()

    def _release(self, line: _Line) -> None:
        with self._work:
            if self._streams.pop(line, None) is not None:
                line.closed = True
                self._closed_lines.append(line)

    # The thread.

    def _run(self) -> None:
        under_way: _Pass | None = None
        try:
            while (lines := self._wait(under_way is None)) is not None:
                self._busy_since = time.monotonic()
                for begun in self._passes(lines):
                    if under_way is not None:
                        self._finish(under_way)
                    under_way = begun
                    if not self._decoder.overlaps:
                        self._finish(begun)
                        under_way = None
                if not lines:  # and so nothing to put together meanwhile
                    self._finish(under_way)
                    under_way = None
                if under_way is None:
                    self._busy_since = None
        except Exception as error:  # whatever it was: the state in the slots is lost
            log.exception("the codec's worker died")
            failure = WorkerError(f"the codec's worker died ({type(error).__name__}: {error})")
            self._failure = failure
            self._post(lambda: [stream.fail(failure) for stream in list(self._streams.values())])

    def _wait(self, blocking: bool) -> list[_Line] | None:
        """The lines with frames waiting, each in a slot; none only if not `blocking`; None when it is time to stop."""
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
            for line in lines:
                if line.slot is None:
                    line.slot = self._free.pop()
                    self._decoder.reset(line.slot)
        return lines

    def _passes(self, lines: list[_Line]) -> Iterator[_Pass]:
        """Begin one pass for each length of the chunks that are taken now, shortest first."""
        with self._work:
            taken = [(line, line.take(self._decoder.max_chunk_frames)) for line in lines]
        for length in sorted({len(codes) for _, codes in taken}):
            # Streams closed since are left out: a cancel is felt at the next pass.
            batch = [(line, codes) for line, codes in taken if len(codes) == length and not line.closed]
            if batch:
                began_s = time.perf_counter()
                result = self._decoder.begin([(line.slot, codes) for line, codes in batch])
                yield _Pass([line for line, _ in batch], length, began_s, result)

    def _finish(self, under_way: _Pass) -> None:
        """Wait for a pass and hand its audio over."""
        # Copies: else a reader that lags keeps the memory of all that shared its passes.
        audio = [samples.copy() for samples in under_way.result()]
        now_s = time.perf_counter()
        seconds = now_s - max(under_way.began_s, self._finished_s)  # it began behind the one before
        self._finished_s = now_s
        with self._work:
            answers = [
                (line, answer)
                for line, samples in zip(under_way.lines, audio, strict=True)
                for answer in line.put(samples, under_way.frames, seconds)
            ]
        if answers:
            self._post(lambda: self._hand_over(answers))

    def _hand_over(self, answers: list[tuple[_Line, Audio]]) -> None:
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

    def __init__(self, worker: DecodeWorker, line: _Line, max_backlog_frames: int):
        self._worker, self._line, self._max_backlog_frames = worker, line, max_backlog_frames
        self._sizes: deque[int] = deque()  # frames of each feed that is not read yet
        self._ready: deque[Audio] = deque()
        self._finished = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    async def feed(self, codes: np.ndarray) -> None:
        """Hand over frames [n, K], n ≥ 1; waits while too many are inside. Raises: WorkerError."""
        while (
            self._error is None and self._sizes and sum(self._sizes) + len(codes) > self._max_backlog_frames
        ):
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
