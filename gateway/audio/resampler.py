"""The rate that a caller asked for."""

from __future__ import annotations

import numpy as np
import soxr


class StreamResampler:
    """soxr, high quality: passes everything up to 0.91 of the lower rate's half. Equal rates pass through."""

    def __init__(self, input_rate_hz: int, output_rate_hz: int):
        self.output_rate_hz = output_rate_hz
        self._stream = (
            None
            if input_rate_hz == output_rate_hz
            else soxr.ResampleStream(input_rate_hz, output_rate_hz, 1, dtype="float32")
        )

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """float32 [T] → float32 [T']; some samples may be held back."""
        if self._stream is None:
            return samples
        done: np.ndarray = self._stream.resample_chunk(samples)
        return done

    def finish(self) -> np.ndarray:
        """What is held back."""
        nothing = np.zeros(0, np.float32)
        if self._stream is None:
            return nothing
        done: np.ndarray = self._stream.resample_chunk(nothing, last=True)
        return done
