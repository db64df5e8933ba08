"""What the bench looks at in audio: 16-bit little-endian samples, mono."""

from __future__ import annotations

import numpy as np

SAMPLE_BYTES = 2
_AUDIBLE = 328  # 1 % of full scale, -40 dBFS: above the noise in the pauses of a voice, below its softest sounds


def first_audible(pcm: bytes) -> int | None:
    """Index of the first sample that is not silence; None when there is none. pcm: whole samples."""
    loud = np.abs(np.frombuffer(pcm, "<i2").astype(np.int32)) >= _AUDIBLE
    return int(loud.argmax()) if loud.any() else None


class Pieces:
    """Bytes as they come, in whole samples."""

    def __init__(self) -> None:
        self._rest = b""

    def whole(self, data: bytes) -> bytes:
        """The whole samples of what has come and was not returned."""
        data = self._rest + data
        cut = len(data) - len(data) % SAMPLE_BYTES
        self._rest = data[cut:]
        return data[:cut]
