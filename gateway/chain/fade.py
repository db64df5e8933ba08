"""Where speech is cut off, it fades out, so that it does not click."""

from __future__ import annotations

import numpy as np

FADE_S = 0.005


def fade_before(samples: np.ndarray, cut: int, length: int) -> np.ndarray:
    """float32 [T] that goes linearly to 0 over the `length` samples before `cut`, as far as they are in `samples`.

    cut: a position relative to the first sample; it may lie outside.
    """
    begin, end = max(0, cut - length), min(len(samples), cut)
    if begin >= end:
        return samples
    faded = samples.copy()
    faded[begin:end] *= (cut - 1 - np.arange(begin, end, dtype=np.float32)) / length
    return faded
