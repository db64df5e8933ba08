"""Passes of the decoder as captured CUDA graphs: one for each (streams, frames) that passes are filled up to.

A pass of Mimi is some hundred small kernels, and launching them one by one takes longer than they run.
A graph reads which rows of the pools it works on, and their codes, from tensors that stay where they
are; rows that a pass has no stream for work on a spare one. On a CPU nothing is captured, and the same
code, filling up included, runs the passes as they come: for tests.
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
    rows: Tensor  # [n] int64
    codes: Tensor  # [n, K, T] int64
    audio: Tensor  # [n, 1, samples], written by the graph
    graph: torch.cuda.CUDAGraph | None


class PassGraphs:
    """Made by capture() at the start; afterwards one call runs one pass."""

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
        run: rows [n], codes [n, K, T] → audio [n, 1, samples], without waiting for the device.
        spare: a row that belongs to no stream.
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
        with self._on_device():
            stream, pool = (torch.cuda.Stream(), torch.cuda.graph_pool_handle()) if is_cuda else (None, None)
            for frames in reversed(self.frames):
                for streams in reversed(self._streams):
                    rows = torch.full((streams,), self._spare, device=self._device)
                    codes = torch.zeros(streams, self._codebooks, frames, dtype=torch.int64, device=self._device)
                    if stream is None:
                        self._passes[streams, frames] = _Pass(rows, codes, torch.empty(0), None)
                        continue
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):  # what a library does the first time may not be captured
                        self._run(rows, codes)
                    torch.cuda.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                        audio = self._run(rows, codes)
                    self._passes[streams, frames] = _Pass(rows, codes, audio, graph)

    @torch.inference_mode()
    def __call__(self, slots: Sequence[int], codes: np.ndarray) -> np.ndarray:
        """codes: [n, K, T] int64 of n ≤ most_streams slots, T one of `frames`. Returns: samples [n, samples]."""
        count, _, frames = codes.shape
        size = next(size for size in self._streams if size >= count)
        chosen = self._passes[size, frames]
        rows = torch.full((size,), self._spare)
        rows[:count] = torch.tensor(slots)
        with self._on_device():
            _put(chosen.rows, rows)
            _put(chosen.codes[:count], torch.from_numpy(codes))
            if chosen.graph is None:
                return self._run(chosen.rows, chosen.codes)[:count, 0].numpy()
            chosen.graph.replay()
            # Pinned memory of its own, which lives as long as somebody holds samples in it.
            samples = torch.empty(count, chosen.audio.shape[-1], dtype=chosen.audio.dtype, pin_memory=True)
            samples.copy_(chosen.audio[:count, 0], non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()
            done.synchronize()
        return samples.numpy()

    def _on_device(self) -> contextlib.AbstractContextManager:
        """The worker's thread may have another device current; a graph is replayed on the current one's stream."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()


def _put(to: Tensor, numbers: Tensor) -> None:
    """Without waiting: pinned memory is kept until the copy is done."""
    to.copy_(numbers.pin_memory() if to.is_cuda else numbers, non_blocking=True)
