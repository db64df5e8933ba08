"""Lengths of audio as numbers of frames, in whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction


def frames_of_ms(milliseconds: int, frame_rate_hz: float) -> int:
    """The fewest whole frames that are at least as long: 560 ms at 12.5 frames/s are 7.

    In fractions: 0.56 * 12.5 is a little more than 7 in floating point, and would be 8 frames.
    """
    return math.ceil(Fraction(milliseconds) * Fraction(frame_rate_hz) / 1000)
