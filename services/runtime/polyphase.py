"""A filter between two fixed rates, exact in length and alignment. Knows numpy alone.

soxr's streams are as exact, but work in blocks: they delay by about 900 samples (38 ms at 24 kHz).
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

IntOrArray = TypeVar("IntOrArray", int, NDArray[np.int64])

_STOP_DB = 90.0


class PolyphaseFilter:
    """The filter between two rates, one row of taps per output phase; immutable.

    Output sample m lies at input position m * down / up. Kaiser-windowed sinc (Oppenheim and
    Schafer, Discrete-Time Signal Processing, 7.5.3): beta and length from stop band and transition.
    """

    def __init__(self, from_hz: int, to_hz: int, *, pass_edge: float, stop_edge: float):
        """pass_edge, stop_edge: where the transition begins and ends, as shares of the lower rate's half."""
        divisor = math.gcd(from_hz, to_hz)
        self.up, self.down = to_hz // divisor, from_hz // divisor
        lower = min(1.0, to_hz / from_hz)  # the lower rate's half in units of the input's
        cutoff = lower * (pass_edge + stop_edge) / 2
        beta = 0.1102 * (_STOP_DB - 8.7)
        width = (stop_edge - pass_edge) * lower * math.pi  # radians per input sample
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

    @property
    def lookback(self) -> int:
        """Input samples before an output's position that its taps reach."""
        return max(0, self.half - 1)

    def outputs(self, samples: IntOrArray) -> IntOrArray:
        """Output positions that lie within `samples` input samples."""
        return -(-samples * self.up // self.down)

    def complete_outputs(self, samples: IntOrArray) -> IntOrArray:
        """Output positions whose taps lie within `samples` input samples."""
        reached: IntOrArray = np.maximum(samples - self.half, 0)
        return self.outputs(reached)

    def block_matrix(self, periods: int) -> np.ndarray:
        """float32 [periods * down - 1 + 2 * half, periods * up]: a block of outputs as one product.

        The block begins at an input position p that is a multiple of `down`; its input begins at p - lookback.
        """
        matrix = np.zeros((periods * self.down - 1 + 2 * self.half, periods * self.up), np.float32)
        for output in range(periods * self.up):
            first, phase = divmod(output * self.down, self.up)
            matrix[first : first + 2 * self.half, output] = self.taps[phase]
        return matrix
