"""One stream as the worker's thread sees it: queued frames, and audio not delivered yet. Knows no threads."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from services.runtime.playback_deadline import PlaybackDeadline


@dataclass(frozen=True)
class Audio:
    """Audio of the frames of one `feed`. samples: float32 [n * samples_per_frame].

    compute_s: duration of the stream's passes since its last Audio. wait_s: the rest of the time from the `feed`
    to the samples.
    """

    samples: np.ndarray
    compute_s: float
    wait_s: float


class FrameQueue:
    """Requests of frames enter by `enqueue`, passes take frames by `dequeue`, samples return by `complete`, in order.

    deadline: advances by the frames that passes take. A request is answered whole, so one that several passes
    share counts when its last frame is taken.
    """

    def __init__(self, frame_s: float, now_s: float, *, discard_frames: int = 0) -> None:
        """frame_s: duration of a frame. now_s: on the clock that `dequeue` gets.

        discard_frames: first frames of the stream whose audio its listener has: they do not advance the deadline.
        """
        self.slot: int | None = None
        self.queued_frames = 0
        self.pending_requests: deque[tuple[int, float]] = deque()  # frames of each unanswered request, arrival time
        self.deadline = PlaybackDeadline(now_s)
        self._frame_s = frame_s
        self._discard_frames = discard_frames
        self._codes: deque[np.ndarray] = deque()  # the rest of each request, [n, K], queued_frames frames in all
        self._split_frames = 0  # frames that passes have taken of the first of them
        self._audio: list[np.ndarray] = []  # decoded and not answered, _decoded_frames frames in all
        self._decoded_frames = 0
        self._compute_s = 0.0

    def enqueue(self, codes: np.ndarray) -> None:
        """Add a request, [n, K]."""
        self.pending_requests.append((len(codes), time.perf_counter()))
        self._codes.append(codes)
        self.queued_frames += len(codes)

    def next_frames(self, limit: int) -> int:
        """The largest power of two that is queued and at most `limit`."""
        return 1 << (min(self.queued_frames, limit).bit_length() - 1)

    def dequeue(self, count: int, now_s: float) -> np.ndarray:
        """Take the next frames, [count, K]; count ≤ queued_frames."""
        self.queued_frames -= count
        taken: list[np.ndarray] = []
        complete = 0  # frames of requests that are taken completely now
        while count:
            codes = self._codes.popleft()
            if len(codes) > count:
                self._codes.appendleft(codes[count:])
                codes = codes[:count]
                self._split_frames += count
            else:
                complete += self._split_frames + len(codes)
                self._split_frames = 0
            taken.append(codes)
            count -= len(codes)
        if complete:
            discarded = min(complete, self._discard_frames)
            self._discard_frames -= discarded
            # With 0 s of audio the deadline is now at the earliest: a replay alternates with streams that are late.
            self.deadline.audio_sent((complete - discarded) * self._frame_s, now_s)
        return taken[0] if len(taken) == 1 else np.concatenate(taken)

    def complete(self, samples: np.ndarray, frames: int, seconds: float) -> list[Audio]:
        """Take a pass's samples [frames * samples_per_frame]; returns the answers that are complete now.

        seconds: duration of the pass.
        """
        per_frame = len(samples) // frames
        self._audio.append(samples)
        self._decoded_frames += frames
        self._compute_s += seconds
        answers = []
        while self.pending_requests and self.pending_requests[0][0] <= self._decoded_frames:
            count, arrived_s = self.pending_requests.popleft()
            wait_s = max(0.0, time.perf_counter() - arrived_s - self._compute_s)
            audio = self._audio[0] if len(self._audio) == 1 else np.concatenate(self._audio)
            answers.append(Audio(audio[: count * per_frame], self._compute_s, wait_s))
            self._decoded_frames -= count
            self._audio = [audio[count * per_frame :]] if self._decoded_frames else []
            self._compute_s = 0.0
        return answers
