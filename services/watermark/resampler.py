"""A resampler between two fixed rates, exact in length and alignment, for windows of many streams at once.

soxr's ResampleStream is as exact but holds back about 900 samples (38 ms at 24 kHz) each way; a
plain polyphase filter needs 1.5 ms, which is what a stream that waits for its look-ahead wants.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Whole = TypeVar("Whole", int, NDArray[np.int64])

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

    def outputs(self, samples: Whole) -> Whole:
        """Output positions that lie within `samples` input samples."""
        return -(-samples * self.up // self.down)

    def known(self, samples: Whole) -> Whole:
        """Output positions whose taps lie within `samples` input samples."""
        return self.outputs(np.maximum(samples - self.half, 0))


class Bank:
    """A kernel as one matrix: each `down` input samples, with what the taps reach beyond, → `up` outputs.

    Block b holds the outputs from b * up on, and its input begins at b * down - lead. Nothing is kept
    between calls: whoever calls gives all that the outputs reach back to.
    """

    def __init__(self, kernel: Kernel, device: torch.device | str = "cpu"):
        self.up, self.down, self.half = kernel.up, kernel.down, kernel.half
        self.lead = max(0, kernel.half - 1)
        self._length = kernel.down - 1 + 2 * kernel.half
        matrix = np.zeros((self._length, kernel.up), np.float32)
        if kernel.half:
            for output in range(kernel.up):
                first, phase = divmod(output * kernel.down, kernel.up)
                matrix[first : first + 2 * kernel.half, output] = kernel.taps[phase]
        self._matrix = torch.from_numpy(matrix).to(device)

    def blocks(self, outputs: int) -> int:
        """Blocks that hold so many outputs, wherever in a block they begin."""
        return -(-(outputs + self.up - 1) // self.up)

    def window(self, blocks: int) -> int:
        """Input samples of so many blocks."""
        return (blocks - 1) * self.down + self._length if self.half else blocks

    def __call__(self, samples: Tensor) -> Tensor:
        """samples [B, window(n)] → [B, n * up]."""
        if not self.half:
            return samples
        return (samples.unfold(1, self._length, self.down) @ self._matrix).flatten(1)
