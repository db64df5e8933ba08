"""Numbers on their way to the device, in page-locked memory that is there from the start.

`Tensor.pin_memory` takes new memory from CUDA whenever none of the right size is free, and CUDA then waits for all that
it has been given: the next step was not launched before the one ahead of it was over. Here memory is reused in turns, and
only when the turn comes to memory whose copies are still under way does the host wait for them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PARTS = 4
_PART_BYTES = 1 << 20
_ALIGNMENT = 64


class Staging:
    """Uploads arrays without a wait. One thread, one stream."""

    def __init__(self, device: torch.device, *, part_bytes: int = _PART_BYTES):
        """part_bytes: of each of the parts that are reused in turns; a larger array gets memory of its own."""
        self._device, self._part_bytes = device, part_bytes
        self._is_cuda = device.type == "cuda"
        self._parts = [torch.zeros(part_bytes, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(_PARTS)]
        self._memory = [part.numpy() for part in self._parts]
        self._copied: list[torch.cuda.Event | None] = [None] * _PARTS  # the last copy out of each part
        self._part = self._used = 0

    def upload(self, array: np.ndarray) -> Tensor:
        """A tensor like `array` on the device, there before anything that is launched later."""
        if array.nbytes > self._part_bytes:
            tensor = torch.as_tensor(array)
            return tensor.pin_memory().to(self._device, non_blocking=True) if self._is_cuda else tensor.clone()
        if self._used + array.nbytes > self._part_bytes:
            self._next_part()
        memory = self._memory[self._part][self._used : self._used + array.nbytes]
        staged = np.ndarray(array.shape, array.dtype, memory)
        staged[...] = array
        self._used += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        tensor = torch.from_numpy(staged)
        return tensor.to(self._device, non_blocking=True) if self._is_cuda else tensor.clone()

    def _next_part(self) -> None:
        if self._is_cuda:
            self._copied[self._part] = torch.cuda.Event(blocking=True)
            self._copied[self._part].record()  # type: ignore[union-attr]
        self._part, self._used = (self._part + 1) % _PARTS, 0
        if (copied := self._copied[self._part]) is not None:
            copied.synchronize()
