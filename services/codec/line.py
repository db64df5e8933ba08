"""One stream as the worker's thread sees it: frames waiting, audio not handed over yet. Knows no threads."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from services.runtime.playback_deadline import PlaybackDeadline


@dataclass(frozen=True)
class Audio:
    """Audio of the frames of one `feed`. samples: float32 [n * samples_per_frame].

    compute_s: time of the passes that this stream took part in since its last Audio. wait_s: time
    from the `feed` to the samples that was not spent in them.
    """

    samples: np.ndarray
    compute_s: float
    wait_s: float


class Line:
    """Frames go in by `give`, to a pass by `take`; samples come back by `put`, in the same order.

    lead: by what was taken. Feeds are answered whole, so one that is taken in parts counts when its last part is.
    """

    def __init__(self, frame_s: float, now_s: float) -> None:
        """frame_s: seconds of speech in a frame. now_s: on the clock that `take` is told."""
        self.slot: int | None = None
        self.waiting = 0  # frames that are in no pass yet
        self.owed: deque[tuple[int, float]] = deque()  # frames of each feed that is not answered yet, and when it came
        self.deadline = PlaybackDeadline(now_s)
        self._frame_s = frame_s
        self._codes: deque[np.ndarray] = deque()  # what is left of each feed, [n, K], `waiting` frames in all
        self._parted = 0  # frames that the first of them had and has no more
        self._audio: list[np.ndarray] = []  # decoded and not answered, `_decoded` frames in all
        self._decoded = 0
        self._compute_s = 0.0

    def give(self, codes: np.ndarray) -> None:
        """One more feed, [n, K]."""
        self.owed.append((len(codes), time.perf_counter()))
        self._codes.append(codes)
        self.waiting += len(codes)

    def next_frames(self, most: int) -> int:
        """The largest power of two that is waiting and no more than `most`."""
        return 1 << (min(self.waiting, most).bit_length() - 1)

    def take(self, count: int, now_s: float) -> np.ndarray:
        """The next frames, [count, K], no more than are waiting."""
        self.waiting -= count
        taken: list[np.ndarray] = []
        whole = 0  # frames of feeds that are taken whole now
        while count:
            codes = self._codes.popleft()
            if len(codes) > count:
                self._codes.appendleft(codes[count:])
                codes = codes[:count]
                self._parted += count
            else:
                whole += self._parted + len(codes)
                self._parted = 0
            taken.append(codes)
            count -= len(codes)
        if whole:
            self.deadline.audio_sent(whole * self._frame_s, now_s)
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
