"""A streaming resampler between two fixed rates, exact in length and alignment. Knows no torch.

soxr's ResampleStream is as exact but holds back about 900 samples (38 ms at 24 kHz) each way; a
plain polyphase filter needs 1.5 ms, which is what a stream that waits for its look-ahead wants.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

# Share of the lower rate's Nyquist frequency that the transition takes on each side of it. The
# public model marks up to 11.03 kHz; with 24 kHz audio the filter is flat up to 11.1 kHz.
_TRANSITION = 0.075
_STOP_DB = 90.0


class Kernel:
    """The filter bank between two rates: one row of taps for each output phase; shared, never changed.

    Output sample m stands at input position m * down / up. Kaiser-windowed sinc (Oppenheim and
    Schafer, Discrete-Time Signal Processing, 7.5.3): beta and length from stop band and transition.
    """

    def __init__(self, from_hz: int, to_hz: int):
        divisor = math.gcd(from_hz, to_hz)
        self.up, self.down = to_hz // divisor, from_hz // divisor
        cutoff = min(1.0, to_hz / from_hz)  # in units of the input's Nyquist frequency
        beta = 0.1102 * (_STOP_DB - 8.7)
        width = 2 * _TRANSITION * cutoff * math.pi  # radians per input sample
        # Taps on each side of an output's position; 0 when the rates are equal.
        self.half = 0 if self.up == self.down else math.ceil((_STOP_DB - 8) / (2.285 * width) / 2) + 1
        if not self.half:
            self.taps = np.ones((1, 1), np.float32)
            return
        fraction = np.arange(self.up)[:, None] / self.up  # position of the output after input sample 0
        offset = np.arange(1 - self.half, self.half + 1)[None, :] - fraction  # [up, 2 * half]
        window = np.i0(beta * np.sqrt(np.clip(1 - (offset / self.half) ** 2, 0, None))) / np.i0(beta)
        taps = cutoff * np.sinc(cutoff * offset) * window
        self.taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)

    def outputs(self, samples: int) -> int:
        """Output positions that lie within `samples` input samples."""
        return -(-samples * self.up // self.down)


class Resampler:
    """One stream through a kernel: what comes out does not depend on how the input was cut."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        # Input from position `_start` on; the silence before the stream lets the first taps reach back.
        self._start = -max(0, kernel.half - 1)
        self._held = np.zeros(-self._start, np.float32)
        self._received = 0
        self._sent = 0

    def push(self, samples: NDArray[np.float32], last: bool = False) -> NDArray[np.float32]:
        """Take input [n], give the output [m] that is ready; with `last`, all the rest."""
        kernel = self._kernel
        if not kernel.half:
            return samples
        self._received += len(samples)
        total = kernel.outputs(self._received)
        tail = np.zeros(kernel.half if last else 0, np.float32)
        self._held = np.concatenate([self._held, samples, tail])
        # Output m needs inputs up to floor(m * down / up) + half.
        known = self._start + len(self._held) - kernel.half
        end = max(self._sent, min(total, kernel.outputs(known)) if known > 0 else 0)
        position = np.arange(self._sent, end, dtype=np.int64) * kernel.down
        self._sent = end
        if not len(position):
            return np.zeros(0, np.float32)
        first = position // kernel.up - kernel.half + 1 - self._start
        windows = sliding_window_view(self._held, 2 * kernel.half)[first]
        output = np.einsum("mk,mk->m", windows, kernel.taps[position % kernel.up], optimize=False)
        # Keep what the next output reaches back to.
        keep = end * kernel.down // kernel.up - kernel.half + 1
        drop = min(max(0, keep - self._start), len(self._held))
        self._held, self._start = self._held[drop:].copy(), self._start + drop
        return output.astype(np.float32, copy=False)
