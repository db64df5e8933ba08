"""Where the state of all streams lies: tensors with a row for each stream, by slot. Knows no formula.

A pass reads the rows of its streams and writes them back, all streams at once. Slots are given to
streams as they come and the tensors double when none is free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

import torch
from torch import Tensor


class Slots:
    """Give `add` all the tensors first; then passes of different streams may run in several threads."""

    def __init__(self, count: int, device: torch.device):
        """count: how many streams there is room for before it must be enlarged."""
        self._device, self._count = device, max(1, count)
        self._free = list(range(self._count - 1, -1, -1))
        self._pools: list[Tensor] = []
        self._passes = 0
        self._changed = Condition()

    def add(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """One more tensor for each stream, of this shape, zero at first; returns its number."""
        self._pools.append(torch.zeros(self._count, *shape, dtype=dtype, device=self._device))
        return len(self._pools) - 1

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While this holds, no tensor is moved to a larger place."""
        with self._changed:
            self._passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes -= 1
                self._changed.notify_all()

    def take(self, count: int) -> list[int]:
        """Slots of `count` new streams; not while the caller itself is `in_use`."""
        with self._changed:
            while len(self._free) < count:
                self._changed.wait_for(lambda: not self._passes)
                self._pools = [torch.cat([pool, torch.zeros_like(pool)]) for pool in self._pools]
                self._free[:0] = range(2 * self._count - 1, self._count - 1, -1)
                self._count *= 2
            return [self._free.pop() for _ in range(count)]

    def give_back(self, slot: int) -> None:
        """May be called anywhere, a destructor too."""
        self._free.append(slot)

    def clear(self, slots: Sequence[int]) -> None:
        """Make their rows zero."""
        rows = torch.tensor(slots).to(self._device, non_blocking=True)
        for pool in self._pools:
            pool.index_fill_(0, rows, 0)

    def pool(self, number: int) -> Tensor:
        """The tensor itself, [slots, …], for what reads and writes rows of it by kernels of its own."""
        return self._pools[number]

    def read(self, number: int, rows: Tensor) -> Tensor:
        """rows: slots [B]; a copy of theirs [B, …]."""
        return self._pools[number].index_select(0, rows)

    def write(self, number: int, rows: Tensor, values: Tensor) -> None:
        self._pools[number].index_copy_(0, rows, values)

    def behind(self, number: int, rows: Tensor, new: Tensor) -> Tensor:
        """What is kept of each stream, then `new` [B, k, …]: [B, kept + k, …]; its end is kept henceforth."""
        kept = self._pools[number].shape[1]
        whole = torch.cat([self.read(number, rows), new], dim=1)
        if kept:
            self.write(number, rows, whole[:, whole.shape[1] - kept :])
        return whole
