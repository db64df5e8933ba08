"""Passes as captured CUDA graphs, one for each (columns, streams) size that passes are padded to.

A pass launches more than a hundred small kernels; launching them from Python takes ten times as long as they
run. A graph reads its input from one fixed buffer; padding rows work on a slot that no stream has. A size that
was not captured runs eagerly.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.engine.graphs import GraphRecorder
from services.watermark.embed_pass import PassInput

log = logging.getLogger(__name__)

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass
class _Pass:
    buffer: PassInput
    replay: Callable[[], None]
    marked: Tensor  # written by the replay


class PassGraphs:
    """Call capture() at start-up; afterwards run() executes a pass."""

    def __init__(
        self, run: Callable[[PassInput, int], Tensor], device: torch.device, sizes: Mapping[int, Sequence[int]]
    ):
        """
        run: a pass's input and its columns → samples [B, m], without waiting for the device.
        sizes: columns → numbers of streams.
        """
        self._run, self._device, self._sizes = run, device, sizes
        self._passes: dict[tuple[int, int], _Pass] = {}

    @property
    def captured(self) -> int:
        """Captured passes."""
        return len(self._passes)

    def capture(self, padding_input: Callable[[int, int], PassInput], recorder: Recorder | None = None) -> None:
        """Capture every size, the largest first, so that the others reuse its memory.

        padding_input: columns, streams → the input of a pass without streams, on the host.
        recorder: default: CUDA's.
        """
        recorder = recorder or GraphRecorder()
        pairs = [(columns, streams) for columns, sizes in self._sizes.items() for streams in sizes]
        for columns, streams in sorted(pairs, key=lambda pair: -pair[0] * pair[1]):
            buffer = padding_input(columns, streams).to(self._device)
            replay, marked = recorder(functools.partial(self._run, buffer, columns))
            self._passes[columns, streams] = _Pass(buffer, replay, marked)

    def drop(self) -> None:
        """Forget all captures: passes run eagerly from here on."""
        self._passes.clear()

    def run(self, host: PassInput, columns: int, streams: int) -> Tensor:
        """host: input of exactly `streams` rows. Returns: samples [streams, m] on the device, valid until the next pass."""
        chosen = self._passes.get((columns, streams))
        if chosen is None:
            return self._run(host.to(self._device), columns)
        chosen.buffer.buffer.copy_(host.buffer, non_blocking=True)
        chosen.replay()
        return chosen.marked
