"""One stream as its owner sees it: audio in, marked audio out. Knows no torch.

Where it is, and its samples that are in a pass already, lie in its slot (slots.py, passes.py); here is what
waits to be part of one, and what has come back.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from services.watermark.embedder import Embedder


class EmbedStream:
    """Not for several threads at once, but for `close`; dropping it frees everything."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder
        self.slot: int | None = None  # in the embedder's pools, from the first sample on
        self.waiting = 0  # samples that are in no pass yet
        self.finished = False
        self._samples: deque[NDArray[np.float32]] = deque()  # those
        self._marked: list[NDArray[np.float32]] = []  # not given yet
        self._damaged = False
        self._leaving = threading.Lock()
        self._busy = self._closed = False

    def __del__(self) -> None:
        self._leave()

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take audio [n], n from 0 on, in [-1, 1]; give the marked audio [m] that is ready.

        Raises: ValueError when a sample is not finite, or the stream is over.
        """
        return self._alone(samples)

    def finish(self) -> NDArray[np.float32]:
        """The rest of the marked audio; the stream is over."""
        return self._alone(None)

    def close(self) -> None:
        """Leave the slot to another stream, in any thread, at once or after the pass that it takes part in."""
        with self._leaving:
            self._closed = True
            busy = self._busy
        if not busy:
            self._leave()

    def _alone(self, samples: NDArray[np.float32] | None) -> NDArray[np.float32]:
        [result] = self._embedder.advance([(self, samples)])
        if isinstance(result, Exception):
            raise result
        return result

    # The parts of a step, before and after the passes; for Embedder.advance.

    def take(self, samples: NDArray[np.float32] | None) -> None:
        """Audio [n], None at the end. Raises: ValueError as `push` does."""
        if self.finished:
            raise ValueError("the stream is finished")
        if samples is not None:
            samples = np.asarray(samples, np.float32)
            if samples.ndim != 1:
                raise ValueError(f"samples have {samples.ndim} dimensions, must have 1")
            # Whether a sum of squares is finite is quickly seen; one that is not may be of numbers that are.
            if not math.isfinite(np.dot(samples, samples)) and not np.isfinite(samples).all():
                raise ValueError("samples must be finite, found NaN or infinity")
        with self._leaving:
            if self._closed:
                raise ValueError("the stream is closed")
            self._busy = True
        if samples is None:
            self.finished = True
        elif len(samples):
            self._samples.append(samples)
            self.waiting += len(samples)

    def feed(self, into: NDArray[np.float32]) -> None:
        """Write the next samples [n] to a pass."""
        self.waiting -= len(into)
        place = 0
        while place < len(into):
            samples = self._samples.popleft()
            count = min(len(samples), len(into) - place)
            into[place : place + count] = samples[:count]
            if count < len(samples):
                self._samples.appendleft(samples[count:])
            place += count

    def add(self, marked: NDArray[np.float32], sound: bool) -> None:
        """The next marked samples; sound: whether all are finite."""
        self._marked.append(marked)
        self._damaged |= not sound

    def give(self) -> NDArray[np.float32]:
        """The marked audio that is ready. Raises: RuntimeError when the mark is not finite."""
        marked, self._marked = self._marked, []
        if self._damaged:
            raise RuntimeError("the nets gave a mark that is not finite: their weights are damaged")
        if not marked:
            return np.zeros(0, np.float32)
        return marked[0] if len(marked) == 1 else np.concatenate(marked)

    def rest(self) -> None:
        """It takes part in no pass any more; asked twice, it rests already."""
        if not self._busy:
            return
        if self._samples:  # the caller may write over what it gave; in one piece, however small those of the caller
            self._samples = deque([np.concatenate(self._samples)])
        with self._leaving:
            self._busy = False
            closed = self._closed
        if closed:
            self._leave()

    def _leave(self) -> None:
        with self._leaving:
            slot, self.slot = self.slot, None
        if slot is not None:
            self._embedder.slots.give_back(slot)
