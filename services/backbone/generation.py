"""One request as its reader sees it: frames from a bounded buffer, then why it ended. Event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from services.backbone.scheduler import Entry, Finish

if TYPE_CHECKING:
    from services.backbone.engine import Engine


class GenerationEnded(Exception):
    """The generation ended otherwise than asked for: cancelled, late, its reader silent, the engine broken."""

    def __init__(self, finish: Finish):
        super().__init__(finish.name)
        self.finish = finish


@dataclass(frozen=True)
class Delivery:
    """News for one stream, made by the engine's thread, told on the event loop."""

    generation: Generation
    is_prefilled: bool = False
    frame: list[int] | None = None
    finish: Finish | None = None


class Generation:
    """What `Engine.submit` returns. One reader; `cancel()` in its `finally`.

    The engine runs at most the scheduler's `buffer_frames` ahead of the reader: then the slot
    pauses, which nobody else feels, until the reader has taken some.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self.entry: Entry  # set by the engine on submission
        self.finish: Finish | None = None
        self.span_context: Any = None  # of the request's trace; for whoever hears of the engine's steps
        self._is_prefilled = False
        self._frames: deque[list[int]] = deque()
        self._news: asyncio.Future[None] | None = None

    async def prefilled(self) -> None:
        """Wait until the prompt is in the model. Raises: GenerationEnded."""
        while not self._is_prefilled and self.finish is None:
            await self._wait()
        self._check()

    @property
    def ready(self) -> int:
        """Frames that can be read without waiting."""
        return len(self._frames)

    async def read(self, count: int) -> list[list[int]]:
        """The next `count` frames; fewer only at the end, none after it. At most `buffer_frames` at once.

        Raises: GenerationEnded, instead of frames that are still unread.
        """
        while len(self._frames) < count and self.finish is None:
            await self._wait()
        self._check()
        frames = [self._frames.popleft() for _ in range(min(count, len(self._frames)))]
        if frames and self.finish is None:
            self._engine.consumed(self.entry, len(frames))
        return frames

    def cancel(self) -> None:
        """Free the slot, within one frame. Harmless after the end."""
        if self.finish is None:
            self._engine.cancel(self.entry)

    def receive(self, delivery: Delivery) -> None:
        """What the engine has to say."""
        self._is_prefilled |= delivery.is_prefilled
        if delivery.frame is not None:
            self._frames.append(delivery.frame)
        if delivery.finish is not None:
            self.finish = delivery.finish
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _check(self) -> None:
        if self.finish is not None and not self.finish.is_normal:
            raise GenerationEnded(self.finish)
