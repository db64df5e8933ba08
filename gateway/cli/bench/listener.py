"""Playback of an utterance while it comes, simulated: when it begins, and its buffer underruns."""

from __future__ import annotations


class Listener:
    """Plays from `buffer_s` after the first piece on, without pause unless there is nothing to play.

    Times are seconds on any one clock. underruns: how often playing stopped; underrun_s: for how long in all.
    audible_s: when who plays at once, without a buffer, hears something that is not silence. counted_s: length of what
    came in the time `counts`, from … until.
    """

    def __init__(self, buffer_s: float, counts: tuple[float, float] | None = None):
        self._buffer_s, self._counts = buffer_s, counts
        self.counted_s = 0.0
        self.first_s: float | None = None
        self.audible_s: float | None = None
        self.gaps_s: list[float] = []
        self.heard_s = 0.0  # length of what came
        self.underruns, self.underrun_s = 0, 0.0
        self._last_s = self._play_s = 0.0

    def hear(self, now_s: float, audio_s: float, audible_from_s: float | None = None) -> None:
        """Audio of that length came now. audible_from_s: how far into it silence ends; None: nowhere."""
        if self.first_s is None:
            self.first_s, self._play_s = now_s, now_s + self._buffer_s
        else:
            self.gaps_s.append(now_s - self._last_s)
            late_s = now_s - (self._play_s + self.heard_s)
            if late_s > 0:
                self.underruns += 1
                self.underrun_s += late_s
                self._play_s += late_s
        if self.audible_s is None and audible_from_s is not None:
            self.audible_s = max(now_s, self.first_s + self.heard_s + audible_from_s)
        self._last_s = now_s
        self.heard_s += audio_s
        if self._counts is not None and self._counts[0] <= now_s < self._counts[1]:
            self.counted_s += audio_s

    @property
    def done_s(self) -> float:
        """When the last sample will have been played."""
        return self._play_s + self.heard_s
