"""Newcomers' first frames before those of streams that have audio in hand. Pure Python: no torch, threads or clock.

A step takes longer the more slots it has, and six frames or so precede a listener's first audio. So while a listener
has heard nothing yet, a step leaves out the streams that are `head_start_s` ahead of their listeners; those that are
not go on at the pace of playback. After `max_steps` such steps in a row comes one with all of them, so that the others
stay ahead however many newcomers there are.
"""

from __future__ import annotations

from services.backbone.request import SequenceState


class NewcomersFirst:
    """Chooses who is in the next step."""

    def __init__(self, frame_s: float, *, head_start_s: float = 0.0, max_steps: int = 8, flat_slots: int = 1):
        """frame_s: duration of a frame.

        head_start_s: 0 leaves no stream out. Streams are held to the pace of playback this far ahead. On a card near
            its limit that starves listeners: frames wait for their chunk, of up to 0.64 s, then for codec and watermark.
        flat_slots: up to so many slots a step takes the same time, so that no stream need be left out.
        """
        self._frame_s, self._head_start_s, self._max_steps = frame_s, head_start_s, max_steps
        self._flat_slots = flat_slots
        self._steps = 0  # in a row that left a listener out

    def choose(self, ready: list[SequenceState], is_prefilling: bool, now: float) -> list[SequenceState]:
        """Those of `ready` to step. is_prefilling: whether a prompt is read in this round, whose first frame comes with it."""
        if not self._head_start_s:
            return ready
        is_any_new = is_prefilling or any(seq.audible_s is None for seq in ready)
        if not is_any_new or len(ready) + is_prefilling <= self._flat_slots:
            self._steps = 0
            return ready
        chosen = [seq for seq in ready if self._lead_s(seq, now) < self._head_start_s]
        if len(chosen) == len(ready) or self._steps >= self._max_steps:
            self._steps = 0
            return ready
        self._steps += 1
        return chosen

    def _lead_s(self, seq: SequenceState, now: float) -> float:
        """Audio that is made or in the making and not played, if its listener plays since the first audible frame."""
        if seq.audible_s is None:
            return 0.0
        made = seq.next_frame + seq.in_flight - seq.request.generated_frames - seq.request.held_back_frames
        return made * self._frame_s - (now - seq.audible_s)
