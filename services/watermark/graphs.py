"""Passes as captured CUDA graphs: one for each (columns, streams) that passes are filled up to.

A pass is more than a hundred small kernels, and launching them one by one takes Python ten times longer than
they run. A graph reads all that it needs to know from one piece of memory that stays where it is; rows that a
pass has no stream for work on a spare slot. Where nothing is captured the same passes run as they come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.watermark.passes import Given

log = logging.getLogger(__name__)

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass
class _Pass:
    given: Given
    replay: Callable[[], None]
    marked: Tensor  # written by the replay


class CudaRecorder:
    """Call it with what is to be captured: what does it again, and the tensor that then holds the result."""

    def __init__(self) -> None:
        """On the current device. All that is captured shares memory, so no two may be replayed side by side."""
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # what a library does the first time may not be captured
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


class PassGraphs:
    """Made by capture() at the start; afterwards run() is a pass."""

    def __init__(self, run: Callable[[Given, int], Tensor], device: torch.device, sizes: Mapping[int, Sequence[int]]):
        """
        run: what a pass is given, its columns → samples [B, m], without waiting for the device.
        sizes: columns → numbers of streams.
        """
        self._run, self._device, self._sizes = run, device, sizes
        self._passes: dict[tuple[int, int], _Pass] = {}

    @property
    def captured(self) -> int:
        """How many there are."""
        return len(self._passes)

    def capture(self, given_of: Callable[[int, int], Given], recorder: Recorder | None = None) -> None:
        """All of them, the largest first, whose memory the others then use too.

        given_of: columns, streams → what a pass of nobody's is given, on the host.
        recorder: what captures; default: CUDA's.
        """
        recorder = recorder or CudaRecorder()
        pairs = [(columns, streams) for columns, sizes in self._sizes.items() for streams in sizes]
        for columns, streams in sorted(pairs, key=lambda pair: -pair[0] * pair[1]):
            host = given_of(columns, streams)
            given = host.to(self._device)
            replay, marked = recorder(lambda given=given, columns=columns: self._run(given, columns))
            self._passes[columns, streams] = _Pass(given, replay, marked)

    def drop(self) -> None:
        """Forget them: passes run as they come from here on."""
        self._passes.clear()

    def run(self, host: Given, columns: int, streams: int) -> Tensor:
        """host: of exactly so many rows. Returns: samples [streams, m] on the device, good until the next pass."""
        chosen = self._passes.get((columns, streams))
        if chosen is None:
            return self._run(host.to(self._device), columns)
        chosen.given.whole.copy_(host.whole, non_blocking=True)
        chosen.replay()
        return chosen.marked
