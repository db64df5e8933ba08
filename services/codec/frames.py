"""Turns frames as callers send them into an array for the decoder. Knows neither grpc nor torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

MAX_FRAMES = 64  # in one message, as the contract says


class FramesError(ValueError):
    """Frames cannot be decoded. field: path from the list of frames. description: what is wrong, and the limit."""

    def __init__(self, field: str, description: str):
        super().__init__(f"{field}: {description}")
        self.field, self.description = field, description


def codes_of(frames: Sequence[Sequence[int]], *, codebooks: int, bins: int) -> np.ndarray:
    """Codes [n, codebooks] int64 of 1 to MAX_FRAMES frames, each code below `bins`.

    A code beyond the codebook would read out of bounds on a CPU and break the context of a GPU.
    Raises: FramesError.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise FramesError("frames", f"must hold 1 to {MAX_FRAMES} frames, not {len(frames)}")
    for i, codes in enumerate(frames):
        if len(codes) != codebooks:
            raise FramesError(f"frames[{i}].codes", f"must hold {codebooks} codes, not {len(codes)}")
    numbers = array("q")  # read from lists: numpy takes half as long again, and longer from what protobuf gives
    for codes in frames:
        numbers.fromlist(codes[:])  # type: ignore[arg-type]
    table = np.frombuffer(numbers, np.int64).reshape(-1, codebooks)
    if table.min() < 0 or table.max() >= bins:
        i, k = np.argwhere((table < 0) | (table >= bins))[0]
        raise FramesError(f"frames[{i}].codes[{k}]", f"must be below {bins}, not {table[i, k]}")
    return table
