"""The state of all streams: tensors with one row per stream slot. Knows no signal processing.

A pass reads the rows of its streams and writes them back, all streams at once. Slots are assigned on demand;
the pool doubles when none is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import numpy as np
import torch
from torch import Tensor


class StatePool:
    """Call `add_tensor` for every tensor first; afterwards passes of different streams may run in several threads.

    positions: per-slot integers for the host, [fields, slots] int64; the user defines the fields.
    reallocations: how often the tensors moved to larger memory.
    """

    def __init__(self, count: int, device: torch.device, position_fields: int = 0):
        """count: slots to allocate. position_fields: integers per slot in `positions`."""
        self._device, self._count = device, max(1, count)
        self._free = list(range(self._count - 1, -1, -1))
        self._tensors: list[Tensor] = []
        self._arange = torch.zeros(0, dtype=torch.int64, device=device)
        self._running_passes = 0
        self._changed = Condition()
        self.positions = np.zeros((position_fields, self._count), np.int64)
        self.reallocations = 0

    @property
    def free(self) -> int:
        """Slots that no stream has."""
        return len(self._free)

    def add_tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """Add a tensor [slots, *shape] of zeros; returns its index."""
        self._tensors.append(torch.zeros(self._count, *shape, dtype=dtype, device=self._device))
        return len(self._tensors) - 1

    def reserve_arange(self, count: int) -> None:
        """Allocate what `arange` returns slices of. Call before the first pass."""
        self._arange = torch.arange(count, device=self._device)

    def arange(self, count: int) -> Tensor:
        """0, 1, … count - 1 on the device [count]; allocates only beyond what is reserved."""
        return self._arange[:count] if count <= len(self._arange) else torch.arange(count, device=self._device)

    @contextmanager
    def pass_slots(self, new: int = 0) -> Iterator[list[int]]:
        """Slots for `new` new streams. Inside the block no tensor is reallocated."""
        with self._changed:
            if len(self._free) < new:  # closed streams may keep theirs until their pass ends
                self._changed.wait_for(lambda: len(self._free) >= new or not self._running_passes)
                while len(self._free) < new:
                    self._grow()
            slots = [self._free.pop() for _ in range(new)]
            self._running_passes += 1
        try:
            yield slots
        finally:
            with self._changed:
                self._running_passes -= 1
                self._changed.notify_all()

    def _grow(self) -> None:
        self._tensors = [torch.cat([tensor, torch.zeros_like(tensor)]) for tensor in self._tensors]
        self.positions = np.concatenate([self.positions, np.zeros_like(self.positions)], axis=1)
        self._free[:0] = range(2 * self._count - 1, self._count - 1, -1)
        self._count *= 2
        self.reallocations += 1

    def release(self, slot: int) -> None:
        """Free the slot. Safe in any thread and in a destructor."""
        self._free.append(slot)

    def clear(self, slots: Sequence[int]) -> None:
        """Set the rows of these slots to zero."""
        if not slots:
            return
        rows = torch.tensor(slots, pin_memory=self._device.type == "cuda").to(self._device, non_blocking=True)
        for tensor in self._tensors:
            tensor.index_fill_(0, rows, 0)
        self.positions[:, slots] = 0

    def tensor(self, index: int) -> Tensor:
        """The tensor itself, [slots, …], for kernels that read and write its rows in place."""
        return self._tensors[index]


def append_history(pool: Tensor, rows: Tensor, new: Tensor, counts: Tensor | None) -> Tensor:
    """Concatenate each stream's history with `new` [B, k, …] and store the tail as the new history.

    pool: [slots, history, …]. rows: slots [B].
    counts: how many of the k columns each stream brings [B], at least 1; those after are ignored. None: all k.
    Returns: [B, history + k, …].
    """
    whole = torch.cat([pool.index_select(0, rows), new], dim=1)
    if length := pool.shape[1]:
        pool.index_copy_(0, rows, last_columns(whole, counts, torch.arange(length, device=pool.device)))
    return whole


def last_columns(whole: Tensor, counts: Tensor | None, arange: Tensor) -> Tensor:
    """The last columns that each stream has brought, of whole [B, history + k, …].

    counts: how many of the k columns count [B]; None: all. arange: 0 … history - 1.
    Returns: [B, history, …].
    """
    if counts is None:
        return whole[:, whole.shape[1] - len(arange) :]
    index = (counts[:, None] + arange).view(len(whole), len(arange), *(1 for _ in whole.shape[2:]))
    return whole.gather(1, index.expand(-1, -1, *whole.shape[2:]))
