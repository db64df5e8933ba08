"""A resampler between two fixed rates, exact in length and alignment, for windows of many streams at once.

It delays by 1.5 ms, which soxr's streams, with 38 ms, would take from the stream's look-ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.runtime.polyphase import PolyphaseFilter

# Share of the lower rate's Nyquist frequency that the transition takes on each side of it. The
# public model marks up to 11.03 kHz; with 24 kHz audio the filter is flat up to 11.1 kHz.
_TRANSITION = 0.075


def polyphase_filter(from_hz: int, to_hz: int) -> PolyphaseFilter:
    """The filter between the audio's and the model's rate."""
    return PolyphaseFilter(from_hz, to_hz, pass_edge=1 - _TRANSITION, stop_edge=1 + _TRANSITION)


class FilterBank:
    """A polyphase filter as one matrix: a block of `up` outputs from `down` input samples and the taps' overlap.

    Block b holds the outputs from b * up on; its input begins at b * down - lookback. Stateless: the caller
    passes all the input that the outputs depend on.
    """

    def __init__(self, polyphase: PolyphaseFilter, device: torch.device | str = "cpu"):
        self.up, self.down, self.half = polyphase.up, polyphase.down, polyphase.half
        self.lookback = polyphase.lookback
        self._matrix = torch.empty(0)
        self._length = 0
        if polyphase.half:
            self._matrix = torch.from_numpy(polyphase.block_matrix(1)).to(device)
            self._length = len(self._matrix)

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
