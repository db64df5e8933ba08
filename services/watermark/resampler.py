"""A resampler between two fixed rates, exact in length and alignment, for windows of many streams at once.

soxr's ResampleStream is as exact but delays by about 900 samples (38 ms at 24 kHz) each way; a plain
polyphase filter delays by 1.5 ms, which shortens the stream's look-ahead.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntOrArray = TypeVar("IntOrArray", int, NDArray[np.int64])

# Share of the lower rate's Nyquist frequency that the transition takes on each side of it. The
# public model marks up to 11.03 kHz; with 24 kHz audio the filter is flat up to 11.1 kHz.
_TRANSITION = 0.075
_STOP_DB = 90.0


class PolyphaseFilter:
    """The filter between two rates, one row of taps per output phase; immutable.

    Output sample m lies at input position m * down / up. Kaiser-windowed sinc (Oppenheim and
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

    def outputs(self, samples: IntOrArray) -> IntOrArray:
        """Output positions that lie within `samples` input samples."""
        return -(-samples * self.up // self.down)

    def complete_outputs(self, samples: IntOrArray) -> IntOrArray:
        """Output positions whose taps lie within `samples` input samples."""
        return self.outputs(np.maximum(samples - self.half, 0))


class FilterBank:
    """A polyphase filter as one matrix: a block of `up` outputs from `down` input samples and the taps' overlap.

    Block b holds the outputs from b * up on; its input begins at b * down - lookback. Stateless: the caller
    passes all the input that the outputs depend on.
    """

    def __init__(self, polyphase: PolyphaseFilter, device: torch.device | str = "cpu"):
        self.up, self.down, self.half = polyphase.up, polyphase.down, polyphase.half
        self.lookback = max(0, polyphase.half - 1)
        self._length = polyphase.down - 1 + 2 * polyphase.half
        matrix = np.zeros((self._length, polyphase.up), np.float32)
        if polyphase.half:
            for output in range(polyphase.up):
                first, phase = divmod(output * polyphase.down, polyphase.up)
                matrix[first : first + 2 * polyphase.half, output] = polyphase.taps[phase]
        self._matrix = torch.from_numpy(matrix).to(device)

    def blocks(self, outputs: int) -> int:
        """Blocks that hold `outputs` outputs, wherever in a block they begin."""
        return -(-(outputs + self.up - 1) // self.up)

    def input_length(self, blocks: int) -> int:
        """Input samples that `blocks` blocks need."""
        return (blocks - 1) * self.down + self._length if self.half else blocks

    def __call__(self, samples: Tensor) -> Tensor:
        """samples [B, input_length(n)] → [B, n * up]."""
        if not self.half:
            return samples
        return (samples.unfold(1, self._length, self.down) @ self._matrix).flatten(1)
