"""Newcomers' first frames before those of streams that have audio in hand. Pure Python: no torch, threads or clock.

A step takes longer the more slots it has, and six frames or so precede a listener's first audio. So while a listener
has heard nothing yet, every second step is a small one: without the streams that are `head_start_s` ahead of their
listeners. Those lose the small steps' time and nothing else; a stream that has just begun builds up its buffer in them.
Where many streams are not ahead, the device is near its limit and there are no small steps.
"""

from __future__ import annotations

from services.backbone.request import SequenceState

_SMALL = 4  # a small step has at most one in so many of those that are ready: it takes much less time than one of all


class NewcomersFirst:
    """Chooses who is in the next step."""

    def __init__(self, frame_s: float, *, head_start_s: float = 0.0, flat_slots: int = 1):
        """frame_s: duration of a frame.

        head_start_s: 0 makes no step a small one.
        flat_slots: up to so many slots a step of all takes little longer than a small one: no stream is left out.
        """
        self._frame_s, self._head_start_s, self._flat_slots = frame_s, head_start_s, flat_slots
        self._was_small = False

    def choose(self, ready: list[SequenceState], is_prefilling: bool, now: float) -> list[SequenceState]:
        """Those of `ready` to step. is_prefilling: whether a prompt is read in this round, whose first frame comes with it."""
        was_small, self._was_small = self._was_small, False
        if not self._head_start_s or was_small or len(ready) + is_prefilling <= self._flat_slots:
            return ready
        if not (is_prefilling or any(seq.audible_s is None for seq in ready)):
            return ready
        chosen = [seq for seq in ready if self._lead_s(seq, now) < self._head_start_s]
        self._was_small = len(chosen) <= len(ready) // _SMALL
        return chosen if self._was_small else ready

    def _lead_s(self, seq: SequenceState, now: float) -> float:
        """Audio that is made or in the making and not played, if its listener plays since the first audible frame."""
        if seq.audible_s is None:
            return 0.0
        made = seq.next_frame + seq.in_flight - seq.request.generated_frames - seq.request.held_back_frames
        return made * self._frame_s - (now - seq.audible_s)
