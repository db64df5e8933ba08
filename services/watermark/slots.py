"""Where the state of all streams lies: tensors with a row for each stream, by slot. Knows no formula.

A pass reads the rows of its streams and writes them back, all streams at once. Slots are given to
streams as they come and everything doubles when none is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import numpy as np
import torch
from torch import Tensor


class Slots:
    """Give `add` all the tensors first; then passes of different streams may run in several threads.

    places: where each stream is, for the host: [numbers, slots] int64. What a number means, its user says.
    moved: how often the tensors had to move to larger places.
    """

    def __init__(self, count: int, device: torch.device, numbers: int = 0):
        """count: how many streams there is room for before it must be enlarged. numbers: of each, for the host."""
        self._device, self._count = device, max(1, count)
        self._free = list(range(self._count - 1, -1, -1))
        self._pools: list[Tensor] = []
        self._upto = torch.zeros(0, dtype=torch.int64, device=device)
        self._passes = 0
        self._changed = Condition()
        self.places = np.zeros((numbers, self._count), np.int64)
        self.moved = 0

    @property
    def free(self) -> int:
        """Slots that no stream has."""
        return len(self._free)

    def add(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """One more tensor for each stream, of this shape, zero at first; returns its number."""
        self._pools.append(torch.zeros(self._count, *shape, dtype=dtype, device=self._device))
        return len(self._pools) - 1

    def reserve(self, count: int) -> None:
        """For `upto`; before the first pass."""
        self._upto = torch.arange(count, device=self._device)

    def upto(self, count: int) -> Tensor:
        """0, 1, … count - 1, on the device; made anew only beyond what is reserved."""
        return self._upto[:count] if count <= len(self._upto) else torch.arange(count, device=self._device)

    @contextmanager
    def in_use(self, new: int = 0) -> Iterator[list[int]]:
        """Slots of so many new streams. While it holds, no tensor is moved to a larger place."""
        with self._changed:
            if len(self._free) < new:  # streams that are closed may keep theirs until a pass is over
                self._changed.wait_for(lambda: len(self._free) >= new or not self._passes)
                while len(self._free) < new:
                    self._enlarge()
            slots = [self._free.pop() for _ in range(new)]
            self._passes += 1
        try:
            yield slots
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    def _enlarge(self) -> None:
        self._pools = [torch.cat([pool, torch.zeros_like(pool)]) for pool in self._pools]
        self.places = np.concatenate([self.places, np.zeros_like(self.places)], axis=1)
        self._free[:0] = range(2 * self._count - 1, self._count - 1, -1)
        self._count *= 2
        self.moved += 1

    def give_back(self, slot: int) -> None:
        """May be called anywhere, a destructor too."""
        self._free.append(slot)

    def clear(self, slots: Sequence[int]) -> None:
        """Make their rows zero."""
        if not slots:
            return
        rows = torch.tensor(slots, pin_memory=self._device.type == "cuda").to(self._device, non_blocking=True)
        for pool in self._pools:
            pool.index_fill_(0, rows, 0)
        self.places[:, slots] = 0

    def pool(self, number: int) -> Tensor:
        """The tensor itself, [slots, …], for what reads and writes rows of it by operations of its own."""
        return self._pools[number]

    def read(self, number: int, rows: Tensor) -> Tensor:
        """rows: slots [B]; a copy of theirs [B, …]."""
        return self._pools[number].index_select(0, rows)

    def write(self, number: int, rows: Tensor, values: Tensor) -> None:
        self._pools[number].index_copy_(0, rows, values)

    def behind(self, number: int, rows: Tensor, new: Tensor, counts: Tensor | None = None) -> Tensor:
        """What is kept of each stream, then `new` [B, k, …]: [B, kept + k, …]; its end is kept henceforth.

        counts: how many of the k each stream brings [B], 1 at least; what comes after them is as if it were not
            there. None: all k.
        """
        kept = self._pools[number].shape[1]
        whole = torch.cat([self.read(number, rows), new], dim=1)
        if kept:
            self.write(number, rows, last(whole, counts, self.upto(kept)))
        return whole


def last(whole: Tensor, counts: Tensor | None, upto: Tensor) -> Tensor:
    """The last of whole [B, kept + k, …], of which each stream has brought `counts` [B] of the k, None: all; upto: [kept]."""
    if counts is None:
        return whole[:, whole.shape[1] - len(upto) :]
    index = (counts[:, None] + upto).view(len(whole), len(upto), *(1 for _ in whole.shape[2:]))
    return whole.gather(1, index.expand(-1, -1, *whole.shape[2:]))
