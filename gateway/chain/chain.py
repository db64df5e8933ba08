"""Codec, watermark and the queue to the caller together: the part of the chain that a whole turn shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from csm.common.v1 import common_pb2

from gateway.chain.codec import CodecLink
from gateway.chain.fade import FADE_S, fade_before
from gateway.chain.pauses import PausedAudio
from gateway.chain.queues import OutputQueue
from gateway.chain.resumes import ResumeBudget
from gateway.chain.watermark import Tap, WatermarkLink
from gateway.stages import Stages
from services.runtime.errors import UnavailableError

OUTPUT_CHUNKS = 16  # that wait for the caller at most


class SpeechChain:
    """Frames of one or more generations to marked audio. See the package's docstring for how a turn uses it.

    An async context manager: leaving it cancels everything, whatever the state.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        resumes: ResumeBudget,
        timeout: Callable[[], float],
        on_output: Callable[[str], None] = lambda stage: None,
        on_marked: Callable[[int], None] = lambda samples: None,
        on_waited: Callable[[float], None] = lambda seconds: None,
        on_key: Callable[[str], None] = lambda key_id: None,
        tap: Tap | None = None,
        pauses: bool = False,
    ):
        """timeout: seconds left for the request. on_output: called with a stage's name when it gives something.

        on_marked: called with the number of samples that are ready for the caller. on_waited: called with the seconds
        for which a full queue waited for the caller. on_key: called with the id of a key that marks. tap: is given each piece of unmarked audio, and where it begins. pauses: whether `pause` may be called.
        """
        self._on_output, self._on_marked, self._on_waited = on_output, on_marked, on_waited
        self._rate_hz = stages.identity.sample_rate_hz
        self._codec = CodecLink(
            stages, resumes=resumes, timeout=timeout, on_output=on_output, buffered_s=self._buffered_s
        )
        self._paused = PausedAudio(self._codec) if pauses else None
        self._source = self._paused or self._codec
        self._watermark = WatermarkLink(
            stages, self._source, resumes=resumes, timeout=timeout, buffered_s=self._buffered_s, tap=tap, on_key=on_key
        )
        self._played_from_s: float | None = None  # when a listener who never pauses would have begun
        self._marked = 0  # samples
        self._output: OutputQueue[Any] = OutputQueue(OUTPUT_CHUNKS)
        self._cuts: list[int] = []  # where speech was cut, in samples
        self._tasks: list[asyncio.Task[Any]] = []
        self._is_closed = False

    async def __aenter__(self) -> SpeechChain:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def frames(self) -> int:
        """Frames that were fed so far, of all generations."""
        return self._codec.frames

    @property
    def samples_per_frame(self) -> int:
        """At the bundle's rate; known once the chain is open."""
        return self._codec.samples_per_frame

    async def open(self, patience_s: float = 0.0) -> None:
        """Get a slot in a codec and in a watermark. patience_s: try full ones for at least so long.

        Raises: CallError; then the other's opening is cancelled.
        """
        opening = [asyncio.ensure_future(link.open(patience_s)) for link in (self._codec, self._watermark)]
        try:
            await asyncio.gather(*opening)
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            if self._is_closed:  # a link may have got its slot in the moment in which it was cancelled
                await self._close_links()
        if self._is_closed:
            raise UnavailableError("the speech was cancelled")
        self._watermark.start()
        self.spawn(self._marked_to_output())

    @property
    def samples(self) -> int:
        """Samples there will be of what was fed so far, pauses included."""
        return self._source.samples

    async def feed(self, frames: Sequence[common_pb2.Frame]) -> None:
        """Append frames of a generation; waits while the codec is a window behind."""
        self._on_output("backbone")
        await self._codec.feed(frames)

    def pause(self, samples: int) -> None:
        """Append silence, which makes the stages give what they keep of the audio before it."""
        if self._paused is None:
            raise ValueError("this chain was made without pauses")
        self._paused.pause(samples)

    def cut(self) -> None:
        """Speech was cut off where it is now: it fades out there. To be called before anything else is fed."""
        self._cuts.append(self.samples)

    def post(self, item: object) -> None:
        """Put something into the queue to the caller, behind the audio that waits there."""
        self._output.post(item)

    def finish(self) -> None:
        """There are no more generations."""
        self._codec.finish()

    def end(self) -> None:
        """There is nothing to speak: `output` ends with what was posted. For a chain that was never opened."""
        self._output.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the chain is closed. What it raises, `output` raises at once."""

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by us, when the chain is closed
            self._output.fail(UnavailableError("the speech was cancelled"))
        elif (error := task.exception()) is not None:
            self._output.fail(error)

    async def output(self) -> AsyncIterator[Any]:
        """Marked samples, float32 [T] at the bundle's rate, and what was posted, until the end that `finish` set.

        Raises: CallError.
        """
        while (item := await self._output.get()) is not None:
            yield item

    async def close(self) -> None:
        """Cancel everything. The chain calls nothing of its owner after that."""
        # All of it before the first wait: the task that closes may be cancelled again in the middle of it.
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._watermark.cancel()
        self._source.cancel()
        self._codec.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._close_links()
        self._release()

    def _release(self) -> None:
        """Let go of who is called: a chain, its links and its turn refer to each other, and what refers to itself stays
        in memory, with all its frames, until a full garbage collection, which stops every stream."""
        self._tasks.clear()
        self._on_output, self._on_marked, self._on_waited = (lambda *_: None,) * 3
        self._codec.release()
        self._watermark.release()

    async def _close_links(self) -> None:
        await self._watermark.close()
        await self._source.close()
        await self._codec.close()

    async def _marked_to_output(self) -> None:
        # The watermark keeps its look-ahead until more comes, so a cut is known before its samples get here.
        while (samples := await self._watermark.read()) is not None:
            self._on_output("watermark")
            if self._played_from_s is None:
                self._played_from_s = time.monotonic()
            for cut in self._cuts:
                samples = fade_before(samples, cut - self._marked, round(FADE_S * self._rate_hz))
            self._marked += len(samples)
            self._on_marked(len(samples))
            began_s = time.monotonic()
            await self._output.put(samples)
            self._on_waited(time.monotonic() - began_s)
        self._output.close()

    def _buffered_s(self) -> float:
        """Seconds of audio that a listener who plays from the first sample on has still to play."""
        if self._played_from_s is None:
            return 0.0
        return max(0.0, self._marked / self._rate_hz - (time.monotonic() - self._played_from_s))
