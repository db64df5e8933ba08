"""How many frames the next message of a stream brings. Pure Python: no gRPC, no clock.

A message costs every hop the same whether it brings one frame or sixteen, and a frame that waits for its
message costs its listener. So a chunk is small while the listener is close behind and large when far:

    lead = audio sent beyond what later stages hold back, less the time since the first of it went
    a chunk takes at most half of the lead to make, at the pace of those before it, and holds no more
    than the lead: should the pace drop to that of speech, it still comes in time

What is made already is not kept for a message of its own, however close the listener: a stage that is short of
time would else send all the more messages, and be shorter of time for it.
"""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_SIZES = (1, 1, 2, 4, 8)


class Chunks:
    """The chunks of one stream; `size` is asked before each.

    sizes: most frames in the first, second, … chunk; the last goes on.
    held_back_frames: how many the stages behind keep before anything is heard. None: `sizes` alone decide.
    """

    def __init__(self, sizes: Sequence[int], frame_s: float, held_back_frames: int | None = None):
        self._sizes, self._frame_s, self._held_back = sizes or DEFAULT_SIZES, frame_s, held_back_frames
        self._asked = self._last_sent = 0
        self._began_s = self._last_s = 0.0
        self._heard_s: float | None = None  # when the first frame that can be heard had been sent

    def size(self, sent: int, now_s: float, ready: int = 0) -> int:
        """Frames of the next chunk, when `sent` have gone by now (seconds on any clock that only rises).

        ready: how many that have not gone are made.
        """
        most = self._sizes[min(self._asked, len(self._sizes) - 1)]
        if self._asked == 0:
            self._began_s = self._last_s = now_s
        self._asked += 1
        if self._held_back is None:
            return most
        silent = self._held_back + 1 - sent
        if silent > 0:  # half of them at a time: the codec begins early, and the last comes alone
            return min(most, max(ready, (silent + 1) // 2))
        if self._heard_s is None:
            self._heard_s = now_s
        pace_s = max((now_s - self._began_s) / sent, (now_s - self._last_s) / max(1, sent - self._last_sent))
        self._last_s, self._last_sent = now_s, sent
        lead_frames = sent - self._held_back - (now_s - self._heard_s) / self._frame_s
        share = 1.0 if 2 * pace_s <= self._frame_s else self._frame_s / (2 * pace_s)
        return max(1, min(most, max(ready, int(lead_frames * share))))
