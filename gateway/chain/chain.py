"""Codec, watermark and the queue to the caller together: the part of the chain that a whole turn shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np

from gateway.chain.codec import CodecLink
from gateway.chain.generation import Generation
from gateway.chain.queues import OutputQueue
from gateway.chain.resumes import ResumeBudget
from gateway.chain.watermark import WatermarkLink
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
    ):
        """timeout: seconds left for the request. on_output: called with a stage's name when it gives something."""
        self._on_output = on_output
        self._rate_hz = stages.identity.sample_rate_hz
        self._codec = CodecLink(
            stages, resumes=resumes, timeout=timeout, on_output=on_output, buffered_s=self._buffered_s
        )
        self._watermark = WatermarkLink(
            stages, self._codec, resumes=resumes, timeout=timeout, buffered_s=self._buffered_s
        )
        self._played_from_s: float | None = None  # when a listener who never pauses would have begun
        self._marked = 0  # samples
        self._output: OutputQueue[np.ndarray] = OutputQueue(OUTPUT_CHUNKS)
        self._tasks: list[asyncio.Task[Any]] = []

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

    async def open(self) -> None:
        """Get a slot in a codec and in a watermark. Raises: CallError; then the other's opening is cancelled."""
        opening = [asyncio.ensure_future(link.open()) for link in (self._codec, self._watermark)]
        try:
            await asyncio.gather(*opening)
        finally:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
        self._watermark.start()
        self.spawn(self._marked_to_output())

    async def speak(self, generation: Generation) -> None:
        """Feed all frames of an open generation. Returns when the last one is fed. Raises: CallError."""
        while (frames := await generation.read()) is not None:
            self._on_output("backbone")
            await self._codec.feed(frames)

    def finish(self) -> None:
        """There are no more generations."""
        self._codec.finish()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the chain is closed. What it raises, `audio` raises at once."""

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # by us, when the chain is closed
            self._output.fail(UnavailableError("the speech was cancelled"))
        elif (error := task.exception()) is not None:
            self._output.fail(error)

    async def audio(self) -> AsyncIterator[np.ndarray]:
        """Marked samples, float32 [T] at the bundle's rate, until the end that `finish` set. Raises: CallError."""
        while (samples := await self._output.get()) is not None:
            yield samples

    async def close(self) -> None:
        """Cancel everything."""
        # All of it before the first wait: the task that closes may be cancelled again in the middle of it.
        for task in self._tasks:
            task.cancel()
        self._watermark.cancel()
        self._codec.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._watermark.close()
        await self._codec.close()

    async def _marked_to_output(self) -> None:
        while (samples := await self._watermark.read()) is not None:
            self._on_output("watermark")
            if self._played_from_s is None:
                self._played_from_s = time.monotonic()
            self._marked += len(samples)
            await self._output.put(samples)
        self._output.close()

    def _buffered_s(self) -> float:
        """Seconds of audio that a listener who plays from the first sample on has still to play."""
        if self._played_from_s is None:
            return 0.0
        return max(0.0, self._marked / self._rate_hz - (time.monotonic() - self._played_from_s))
