"""One message of audio for one message of frames, though the worker decodes it in several passes.

A caller who sends many frames at once is far ahead of its listener: what costs then is messages, at every
hop behind. Only the first audio goes out as soon as there is any.
"""

from __future__ import annotations

from collections import deque


class Answers:
    """Audio of one stream, held until a message of frames is decoded whole."""

    def __init__(self) -> None:
        self._ends: deque[int] = deque()  # where each message ends that is not answered yet, in frames
        self._expected = self._decoded = 0
        self._held: list[bytes] = []
        self._answered = False

    def expect(self, frames: int) -> None:
        """A message of so many frames goes to the worker now."""
        self._expected += frames
        self._ends.append(self._expected)

    def decoded(self, audio: bytes, frames: int) -> bytes:
        """What to send, now that the next `frames` are decoded; empty while more of their message is to come."""
        self._decoded += frames
        self._held.append(audio)
        is_whole = False
        while self._ends and self._ends[0] <= self._decoded:
            self._ends.popleft()
            is_whole = True
        if not is_whole and self._answered:
            return b""
        self._answered = True
        held, self._held = self._held, []
        return b"".join(held) if len(held) > 1 else held[0]
