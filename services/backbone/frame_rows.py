"""Frames between the device and a message: one bytes object each. Knows numpy, neither torch nor grpc.

A step makes a frame for each of a thousand streams, so what is done for each of them is kept small: its codes are no
Python numbers, and the garbage collector does not go through bytes. A row is a token as prefix_keys.py hashes it: K codes
and the unused text column, int32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.backbone.prefix_keys import UNUSED

_ITEM_BYTES = 4


def rows_of(codes: np.ndarray) -> list[bytes | None]:
    """The rows of frames, codes [N, K]; None for an all-zero frame, which ends speech."""
    count, codebooks = codes.shape
    tokens = np.empty((count, codebooks + 1), np.int32)
    tokens[:, :codebooks], tokens[:, codebooks] = codes, UNUSED
    data, size = tokens.tobytes(), _ITEM_BYTES * (codebooks + 1)
    rows = [data[start : start + size] for start in range(0, len(data), size)]
    end = np.array([0] * codebooks + [UNUSED], np.int32).tobytes()
    return [None if row == end else row for row in rows]


def codes_of(rows: Sequence[bytes]) -> np.ndarray:
    """The codes of rows, one at least: [n, K] int32."""
    return np.frombuffer(b"".join(rows), np.int32).reshape(len(rows), -1)[:, :-1]
