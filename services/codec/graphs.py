"""Passes of the decoder as captured CUDA graphs: one for each (streams, frames) that passes are filled up to.

A pass of Mimi is some hundred small kernels, and launching them one by one takes longer than they run.
A graph reads which slots it works on, and their codes, from one tensor that stays where it is: one copy
brings both. Rows that a pass has no stream for work on a spare slot. On a CPU nothing is captured, and
the same code, filling up included, runs the passes as they come: for tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class _Pass:
    given: Tensor  # [n + n * T * K] int64: slots, then codes
    audio: Tensor  # [n, samples], written by the graph
    graph: torch.cuda.CUDAGraph | None


def _split(given: Tensor | np.ndarray, streams: int, frames: int) -> tuple:
    """Slots [n] and codes [n, T, K] in `given`."""
    return given[:streams], given[streams:].reshape(streams, frames, -1)


class PassGraphs:
    """Made by capture() at the start; afterwards one begin() runs one pass."""

    def __init__(
        self,
        run: Callable[[Tensor, Tensor], Tensor],
        *,
        device: torch.device,
        codebooks: int,
        spare: int,
        streams: Sequence[int],
        frames: Sequence[int],
    ):
        """
        run: slots [n], codes [n, T, K] → audio [n, samples], without waiting for the device.
        spare: a slot that belongs to no stream.
        streams, frames: the sizes to capture, every pair of them.
        """
        self.frames = sorted(frames)
        self._run, self._device, self._codebooks, self._spare = run, device, codebooks, spare
        self._streams = sorted(streams)
        self._passes: dict[tuple[int, int], _Pass] = {}

    @property
    def most_streams(self) -> int:
        """Of one pass."""
        return self._streams[-1]

    @torch.inference_mode()
    def capture(self) -> None:
        """All pairs, the largest first, whose memory the others then use too."""
        is_cuda = self._device.type == "cuda"
        with on_device(self._device):
            stream, pool = (torch.cuda.Stream(), torch.cuda.graph_pool_handle()) if is_cuda else (None, None)
            for frames in reversed(self.frames):
                for streams in reversed(self._streams):
                    numbers = torch.zeros(streams * (1 + frames * self._codebooks), dtype=torch.int64)
                    numbers[:streams] = self._spare
                    made = _Pass(numbers.to(self._device), torch.empty(0), None)
                    self._passes[streams, frames] = made
                    if stream is None:
                        continue
                    given = _split(made.given, streams, frames)
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):  # what a library does the first time may not be captured
                        self._run(*given)
                    torch.cuda.synchronize()
                    made.graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(made.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                        made.audio = self._run(*given)

    @torch.inference_mode()
    def begin(self, slots: Sequence[int], codes: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """slots: n ≤ most_streams; codes: [T, K] int64 of each, T one of `frames`.

        Returns: what waits for the pass and gives its samples, [n, samples].
        """
        count, frames = len(slots), len(codes[0])
        size = next(size for size in self._streams if size >= count)
        chosen = self._passes[size, frames]
        # Pinned memory goes round: what is given back here is not given out again before the copy is done.
        host = torch.empty(chosen.given.shape, dtype=torch.int64, pin_memory=chosen.given.is_cuda)
        host_slots, host_codes = _split(host.numpy(), size, frames)
        host_slots[:count] = slots
        host_slots[count:] = self._spare
        host_codes[count:] = 0
        np.concatenate(codes, out=host_codes[:count].reshape(count * frames, -1))
        with on_device(self._device):
            chosen.given.copy_(host, non_blocking=True)
            if chosen.graph is None:
                samples = self._run(*_split(chosen.given, size, frames))[:count].numpy()
                return lambda: samples
            chosen.graph.replay()
            heard = torch.empty(count, chosen.audio.shape[1], pin_memory=True)
            heard.copy_(chosen.audio[:count], non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()

        def result() -> np.ndarray:
            done.synchronize()
            return heard.numpy()  # lives as long as somebody holds samples in it

        return result


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """The worker's thread may have another device current, on whose stream kernels would be launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
