"""When a stream's listener needs the next audio: streams are served earliest deadline first."""

from __future__ import annotations


class PlaybackDeadline:
    """Models a listener who starts to play at the first audio and pauses in a buffer underrun.

    deadline_s: the time at which all audio sent so far has been played, on the clock that `audio_sent` gets;
    before the first audio, the time of the request. The stream with the earliest deadline is the most urgent.
    A deadline stays while its stream waits, so no stream starves.
    """

    __slots__ = ("deadline_s",)

    def __init__(self, requested_s: float):
        self.deadline_s = requested_s

    def audio_sent(self, audio_s: float, now_s: float) -> None:
        """Count `audio_s` more seconds of audio, sent at `now_s`."""
        self.deadline_s = max(self.deadline_s, now_s) + audio_s
