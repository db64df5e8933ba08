"""Passes of the decoder as captured CUDA graphs, one for each (streams, frames) size that passes are padded to.

A pass of Mimi launches some hundred small kernels, which takes longer than they run. A graph reads its slots and
codes from one fixed tensor, so one copy feeds it. Padding rows work on a slot that no stream has. On a CPU nothing
is captured, and the same code, padding included, runs eagerly: for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from services.engine.graphs import GraphRecorder, on_device

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass
class _Pass:
    buffer: Tensor  # [n + n * T * K] int64: slots, then codes
    audio: Tensor  # [n, samples], written by the graph
    replay: Callable[[], None] | None  # None: not captured


def _split(buffer: Array, streams: int, frames: int) -> tuple[Array, Array]:
    """Slots [n] and codes [n, T, K] in `buffer`."""
    return buffer[:streams], buffer[streams:].reshape(streams, frames, -1)


class PassGraphs:
    """Call capture() at start-up; afterwards begin() runs one pass."""

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], Tensor],
        *,
        device: torch.device,
        codebooks: int,
        padding_slot: int,
        streams: Sequence[int],
        frames: Sequence[int],
    ):
        """
        run: slots [n], codes [n, T, K] → audio [n, samples], without waiting for the device.
        padding_slot: a slot that belongs to no stream.
        streams, frames: the sizes to capture, every combination.
        """
        self.frames = sorted(frames)
        self._run, self._device, self._codebooks, self._padding_slot = run, device, codebooks, padding_slot
        self._streams = sorted(streams)
        self._passes: dict[tuple[int, int], _Pass] = {}

    @property
    def max_batch(self) -> int:
        """Streams of one pass."""
        return self._streams[-1]

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every size, the largest first, so that the others reuse its memory."""
        with on_device(self._device):
            recorder = GraphRecorder() if self._device.type == "cuda" else None
            for frames in reversed(self.frames):
                for streams in reversed(self._streams):
                    host = torch.zeros(streams * (1 + frames * self._codebooks), dtype=torch.int64)
                    host[:streams] = self._padding_slot
                    captured = _Pass(host.to(self._device), torch.empty(0), None)
                    self._passes[streams, frames] = captured
                    if recorder is not None:
                        work = partial(self._run, *_split(captured.buffer, streams, frames))
                        captured.replay, captured.audio = recorder(work)

    @torch.inference_mode()
    def begin(self, slots: Sequence[int], codes: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Start a pass. slots: n ≤ max_batch; codes: [T, K] int64 of each, T one of `frames`.

        Returns: waits for the pass and returns its samples, [n, samples].
        """
        count, frames = len(slots), len(codes[0])
        size = next(size for size in self._streams if size >= count)
        captured = self._passes[size, frames]
        # The caching allocator does not reuse pinned memory before the copy from it is done.
        host = torch.empty(captured.buffer.shape, dtype=torch.int64, pin_memory=captured.buffer.is_cuda)
        host_slots, host_codes = _split(host.numpy(), size, frames)
        host_slots[:count] = slots
        host_slots[count:] = self._padding_slot
        host_codes[count:] = 0
        np.concatenate(codes, out=host_codes[:count].reshape(count * frames, -1))
        with on_device(self._device):
            captured.buffer.copy_(host, non_blocking=True)
            if captured.replay is None:
                samples = self._run(*_split(captured.buffer, size, frames))[:count].numpy()
                return lambda: samples
            captured.replay()
            output = torch.empty(count, captured.audio.shape[1], pin_memory=True)
            output.copy_(captured.audio[:count], non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()

        def result() -> np.ndarray:
            done.synchronize()
            return output.numpy()  # the samples keep the buffer alive

        return result
