"""How many frames go into a stream's next message. Pure Python: no gRPC, no clock.

A message costs every hop the same with one frame or with sixteen, and a frame that waits for its message
delays playback. So a chunk is small while the listener's buffer is short and large when it is long:

    buffer = audio sent beyond what later stages hold back, minus the time since the first of it was sent,
             plus half of what the listener buffers before playing
    a chunk takes at most four fifths of the buffer to make, at the recent pace, and holds no more than the buffer:
    if the pace drops to real time, it still arrives before an underrun

A stage that is short of time must not send more messages and lose more time. So frames that are ready go out together
even with a short buffer; a stream that is hardly faster than it is heard goes two frames at a time at least, if its
listener buffers as many; and one a little slower, whose listener has played all of that buffer and waits for every chunk
however small it is, four. One slower than half of real time is no server under load but a slow machine, and every frame
goes at once.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_MAX_SIZES = (1, 1, 2, 4, 8)
_MAKING_SHARE = 0.8  # of the buffer; with 0.5 a stream at 65 ms a frame made 36 messages of 20 s, now 24
# Least frames of a chunk for a listener who buffers as many as the first of these.
_LEAST_CLOSE = 2  # of a stream that is hardly faster than speech:
_CLOSE = 0.95  # of real time
_LEAST_SLOW = 4  # of one slower than speech
_SLOWEST = 2.0  # times real time, up to which there is a least
_SURELY_SLOW = 12  # frames after the first audible one that show it: the first ones wait for the prompt and for a step


class ChunkSizer:
    """Chunk sizes of one stream; call `next_size` before each chunk.

    max_sizes: most frames in the first, second, … chunk; the last is repeated.
    held_back_frames: frames that later stages hold back before any audio. None: `max_sizes` alone decide.
    opening_frames: first frames that are heard at once all the same; they make the first chunk.
    listener_buffer_s: audio that the listener buffers before playing. A chunk takes a quarter of it at most, of a stream
        that is hardly faster than speech one frame's time; the rest is for later stages, which do not always take the
        same time.
    """

    def __init__(
        self,
        max_sizes: Sequence[int],
        frame_s: float,
        held_back_frames: int | None = None,
        opening_frames: int = 0,
        listener_buffer_s: float = 0.0,
    ):
        self._max_sizes, self._frame_s, self._held_back = max_sizes or DEFAULT_MAX_SIZES, frame_s, held_back_frames
        self._opening, self._listener_frames = opening_frames, listener_buffer_s / 2 / frame_s
        self._buffers = listener_buffer_s >= _LEAST_CLOSE * frame_s
        self._chunks = self._last_sent = self._audible_sent = 0
        self._began_s = self._last_s = 0.0
        self._audible_s: float | None = None  # when the first audible frame had been sent

    def next_size(self, sent: int, now_s: float, ready: int = 0) -> int:
        """Frames of the next chunk, when `sent` have been sent by now (seconds on any monotonic clock).

        ready: frames that are made and not sent.
        """
        limit = self._max_sizes[min(self._chunks, len(self._max_sizes) - 1)]
        if self._chunks == 0:
            self._began_s = self._last_s = now_s
        self._chunks += 1
        if self._held_back is None:
            return limit
        if sent < self._opening:
            return min(limit, self._opening - sent)
        if self._opening and self._audible_s is None:
            self._audible_s, self._audible_sent = now_s, sent
        inaudible = self._held_back + 1 - sent
        if inaudible > 0:  # half of them at a time: the codec starts early, and the last frame comes alone
            return min(limit, max(ready, (inaudible + 1) // 2))
        if self._audible_s is None:
            self._audible_s, self._audible_sent = now_s, sent
        pace_s = max((now_s - self._began_s) / sent, (now_s - self._last_s) / max(1, sent - self._last_sent))
        self._last_s, self._last_sent = now_s, sent
        played_frames = (now_s - self._audible_s) / self._frame_s
        # Of the first audible frame a part is held back too, when the look-ahead is no whole number of frames.
        buffer_frames = sent - self._held_back - 1 - played_frames + self._listener_frames
        makeable = _MAKING_SHARE * self._frame_s * buffer_frames / max(pace_s, 1e-9)
        least = self._least(sent - self._audible_sent, played_frames, buffer_frames + self._listener_frames, pace_s)
        return max(1, min(limit, max(ready, least, int(min(buffer_frames, makeable)))))

    def _least(self, made: int, played: float, left: float, pace_s: float) -> int:
        """Frames of a chunk at least. made, played: frames since the first audible one was sent. left: of all the buffer."""
        if not self._buffers or made < _SURELY_SLOW or pace_s >= _SLOWEST * self._frame_s:
            return 1
        return _LEAST_SLOW if left <= 0 else _LEAST_CLOSE if played > _CLOSE * made else 1
