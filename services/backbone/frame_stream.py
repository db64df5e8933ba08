"""A request's output: frames from a bounded buffer, then the reason for its end. A frame is a row of frame_rows.py.

Frames are put in by the engine's thread, and only the one that completes what the reader waits for becomes an event: a
step makes a frame for each of a thousand streams, and a chunk of a stream is complete once in ten steps.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.backbone.request import FinishReason, SequenceState

if TYPE_CHECKING:
    from services.backbone.engine import Engine


class StreamAborted(Exception):
    """It did not end normally: cancelled, past its deadline, reader stalled or engine failed."""

    def __init__(self, finish: FinishReason):
        super().__init__(finish.name)
        self.finish = finish


@dataclass(frozen=True)
class StreamEvent:
    """An event of one stream: created on the engine's thread, handled on the event loop. With neither: frames are there."""

    stream: FrameStream
    is_prefilled: bool = False
    finish: FinishReason | None = None


class FrameStream:
    """What `Engine.submit` returns. One reader; `cancel()` in its `finally`.

    The engine runs at most the scheduler's `buffer_frames` ahead of the reader: then this slot alone
    pauses, until the reader has taken some.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self.seq: SequenceState  # set by the engine on submission
        self.finish: FinishReason | None = None
        self.span_context: Any = None  # of the request's trace; step spans link to it
        self._is_prefilled = False
        self._frames: deque[bytes] = deque()
        self._wanted = math.inf  # frames that the reader waits for; inf: it waits for none
        self._wakeup: asyncio.Future[None] | None = None

    async def prefilled(self) -> None:
        """Wait until the prompt is prefilled. Raises: StreamAborted."""
        while not self._is_prefilled and self.finish is None:
            await self._wait(math.inf)
        self._check()

    @property
    def ready_frames(self) -> int:
        """Frames that can be read without waiting."""
        return len(self._frames)

    async def read(self, count: int) -> list[bytes]:
        """The next `count` frames; fewer only at the end, none after it. At most `buffer_frames` at once.

        Raises: StreamAborted; frames that are still unread are lost.
        """
        while len(self._frames) < count and self.finish is None:
            await self._wait(count)
        self._check()
        frames = [self._frames.popleft() for _ in range(min(count, len(self._frames)))]
        if frames and self.finish is None:
            self._engine.on_read(self.seq, len(frames))
        return frames

    def cancel(self) -> None:
        """Free the slot, within one frame. Harmless after the end."""
        if self.finish is None:
            self._engine.cancel(self.seq)

    def add(self, frame: bytes) -> bool:
        """Called by the engine, on its thread. Returns: whether all that the reader waits for is there, once."""
        frames = self._frames
        frames.append(frame)
        if len(frames) < self._wanted:
            return False
        self._wanted = math.inf
        return True

    def on_event(self, event: StreamEvent) -> None:
        """Called by the engine, on the event loop. Wakes the reader, which looks what there is."""
        self._is_prefilled |= event.is_prefilled
        if event.finish is not None:
            self.finish = event.finish
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _wait(self, frames: float) -> None:
        self._wakeup = asyncio.get_running_loop().create_future()
        self._wanted = frames
        try:
            if len(self._frames) < frames:  # again: a frame that came before _wanted was set made no event
                await self._wakeup
        finally:
            self._wanted, self._wakeup = math.inf, None

    def _check(self) -> None:
        if self.finish is not None and not self.finish.is_normal:
            raise StreamAborted(self.finish)
