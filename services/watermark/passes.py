"""Passes on the device: each takes what its streams wait with, and gives them what it has marked.

The host gathers samples and takes results while the device computes other passes, of this thread or of another one.
What is marked stays where the device wrote it, in host memory of its own for each pass: streams get parts of that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.watermark.embed_pass import EmbedPass, PassInput
from services.watermark.graphs import PassGraphs, Recorder
from services.watermark.opening import Opening
from services.watermark.planner import MAX_PASS_COLUMNS, PassPlanner, PlannedPass, max_streams
from services.watermark.receptive_field import ReceptiveField
from services.watermark.state_pool import StatePool
from services.watermark.stream import EmbedStream

log = logging.getLogger(__name__)

# Batch sizes that passes on a GPU are padded to.
_BATCH_BUCKETS = sorted({1, *(base << bit for bit in range(9) for base in (2, 3) if base << bit <= MAX_PASS_COLUMNS)})
_WARM_PASSES = 4  # of each size: as many as are in flight, or given and not read yet


def batch_buckets(columns: int, slots: int) -> list[int]:
    """Batch sizes that passes of `columns` columns are padded to, when `slots` streams are expected."""
    largest = min(max_streams(columns), slots)
    return [size for size in _BATCH_BUCKETS if size < largest] + [largest]


class StartedPass(NamedTuple):
    """A pass whose result is not awaited yet."""

    streams: Sequence[EmbedStream | Opening]
    emit_counts: list[int]  # samples of each
    columns: list[int]  # of each, this pass's included
    marked: Tensor  # on the host, [streams, m + 3]: see EmbedPass.run
    done: torch.cuda.Event | None  # None: it is

    def collect(self) -> None:
        """Wait for the pass and give each stream what is marked."""
        if self.done is not None:
            self.done.synchronize()
        marked = self.marked.numpy()
        finite, powers = (marked[:, -3] != 0).tolist(), np.ascontiguousarray(marked[:, -2:]).view(np.float64)
        for stream, row, count, columns, is_finite, power in zip(
            self.streams, marked, self.emit_counts, self.columns, finite, powers[:, 0].tolist(), strict=True
        ):
            stream.note_progress(columns, power)
            if count:
                stream.append_marked(row[:count], is_finite)


class Passes:
    """Of one embedder. Several threads may start passes, each of streams of its own."""

    def __init__(
        self,
        embed_pass: EmbedPass,
        planner: PassPlanner,
        field: ReceptiveField,
        state: StatePool,
        device: torch.device,
        *,
        padding_slot: int,
        buckets: Mapping[int, Sequence[int]],
        graphs: bool,
    ):
        """
        padding_slot: of padding rows. buckets: columns → numbers of streams that passes are padded to; empty: they are not.
        graphs: whether warm_up() captures those sizes on CUDA.
        """
        self._pass, self._planner, self._field, self._state, self._device = embed_pass, planner, field, state, device
        self._padding_slot, self._buckets, self._is_cuda = padding_slot, buckets, device.type == "cuda"
        self._lock = threading.Lock()  # padded passes share their input buffer and memory
        self._graphs = PassGraphs(self._run, device, buckets) if graphs and buckets else None
        self._captured_reallocations = 0  # of the state, when passes were captured
        self._wants_graphs = False  # from the warm-up on, where there is something that captures
        self.eager = 0  # passes since the warm-up, where a graph was wanted

    @property
    def captured(self) -> int:
        """Captured passes."""
        return 0 if self._graphs is None else self._graphs.captured

    def warm_up(self, recorder: Recorder | None = None) -> None:
        """See Embedder.warm_up."""
        with self._lock:
            wants_graphs = self._graphs is not None and (recorder is not None or self._is_cuda)
            if self._graphs is not None and wants_graphs:
                try:
                    self._graphs.capture(self._padding_input, recorder)
                    self._captured_reallocations = self._state.reallocations
                except RuntimeError as error:  # marking works without them
                    self._graphs.drop()
                    log.warning(
                        "marking on %s without graphs, which takes several times as long: %s", self._device, error
                    )
            for columns, buckets in self._buckets.items():
                for size in buckets:
                    # What they give is kept until all are started: so each has host memory of its own, as later.
                    given = [
                        self._run_padded(self._padding_input(columns, size), columns, size, size)
                        for _ in range(_WARM_PASSES)
                    ]
                    del given
            if self._is_cuda:
                torch.cuda.synchronize()
            self._wants_graphs = wants_graphs

    def drop_stale_graphs(self) -> None:
        """Go on without graphs if the streams' state lies elsewhere than those look for it."""
        if self._graphs is not None and self.captured and self._state.reallocations != self._captured_reallocations:
            log.warning("more streams than slots were allocated for: marking continues without graphs")
            self._graphs.drop()

    def start(self, streams: Sequence[EmbedStream | Opening], planned: PlannedPass) -> StartedPass:
        """Start a pass of these streams, which are the planned ones."""
        count, control, columns = len(streams), planned.control, planned.columns
        new_samples = control.available - control.consumed
        size, max_samples = count, int(new_samples.max())
        if self._buckets:
            size = next((size for size in self._buckets[columns] if size >= count), count)
            max_samples = self._field.max_samples(columns)
        host = PassInput.allocate(size, max_samples, pinned=self._is_cuda)
        values = host.control.numpy()
        for row, each in zip(values, control, strict=True):
            row[:count] = each
        if size > count:
            values[:, count:] = self._planner.padding_row(self._padding_slot, columns)[:, None]
        for row, stream, samples in zip(host.samples.numpy(), streams, new_samples.tolist(), strict=False):
            stream.fill(row[:samples])
        if self._buckets:
            with self._lock:
                marked = self._run_padded(host, columns, size, count)
        else:
            device_input, interior = host.to(self._device), self._planner.is_interior(control)
            marked = self._pass.run(
                device_input.control, device_input.samples, columns, mixed=False, interior=interior
            ).to("cpu", non_blocking=True)
        done = None
        if self._is_cuda:
            done = torch.cuda.Event(blocking=True)  # sleeps, so that other Python threads run
            done.record()
        computed = (control.first_column + control.column_count).tolist()
        return StartedPass(streams, control.emit_count.tolist(), computed, marked, done)

    def _run_padded(self, host: PassInput, columns: int, size: int, count: int) -> Tensor:
        """Start a pass of `size` rows; returns host memory that holds the first `count` results once it is done."""
        if self._wants_graphs and not self.captured:
            self.eager += 1
        marked = self._run(host, columns) if self._graphs is None else self._graphs.run(host, columns, size)
        output = torch.empty(count, marked.shape[1], pin_memory=self._is_cuda)
        return output.copy_(marked[:count], non_blocking=True)  # the next pass may overwrite it on the device

    def _run(self, pass_input: PassInput, columns: int) -> Tensor:
        device_input = pass_input.to(self._device)
        return self._pass.run(device_input.control, device_input.samples, columns)

    def _padding_input(self, columns: int, streams: int) -> PassInput:
        """The input of a pass that has padding rows only."""
        padding = PassInput.allocate(streams, self._field.max_samples(columns), pinned=self._is_cuda)
        padding.control.numpy()[:] = self._planner.padding_row(self._padding_slot, columns)[:, None]
        padding.samples.zero_()
        return padding
