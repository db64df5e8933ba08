"""How far a stream is ahead of its listener, and so which of many streams should be served next."""

from __future__ import annotations


class Lead:
    """A listener who waits for the first audio, plays from then on, and waits again when there is none.

    due_s: when all that was given will have been played, on the clock that `gave` is told; before the first audio,
    when it was asked for. The stream with the least is the most urgent one, whatever the time is now; who waits
    becomes it, so nobody waits for ever, however many others come.
    """

    __slots__ = ("due_s",)

    def __init__(self, asked_s: float):
        self.due_s = asked_s

    def gave(self, audio_s: float, now_s: float) -> None:
        """So many more seconds of audio went to the listener."""
        self.due_s = max(self.due_s, now_s) + audio_s
