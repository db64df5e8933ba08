"""How far a stream is ahead of its listener, and so which of many streams should be served next."""

from __future__ import annotations

import math


class Lead:
    """A listener who plays from the first audio on, and waits for more when there is none.

    due_s: when all that was given will have been played, on the clock that `gave` is told; -inf before the first
    audio. The stream with the least is the most urgent one, whatever the time is now, and who waits becomes it.
    """

    __slots__ = ("due_s",)

    def __init__(self) -> None:
        self.due_s = -math.inf

    def gave(self, audio_s: float, now_s: float) -> None:
        """So many more seconds of audio went to the listener."""
        self.due_s = max(self.due_s, now_s) + audio_s

    def seconds(self, now_s: float) -> float:
        """What is left to play; negative is how long there was nothing, -inf while nothing was given."""
        return self.due_s - now_s
