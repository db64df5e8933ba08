"""One stream as the host sees it: the samples that columns still need, and how many are known. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from services.watermark.embedder import Embedder

FAR = 1 << 40  # the end of a stream that goes on, in samples


class EmbedStream:
    """Not for several threads at once; dropping it frees everything."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder
        self.slot: int | None = None  # in the embedder's pools, from the first column on
        self.column = 0  # the next one
        self.due = 0  # columns that can be computed now
        self.end = FAR  # the whole stream's length at the model's rate
        self._received = self._sent = self._known = 0  # samples; known: those whose mark is there
        self._held = np.zeros(0, np.float32)  # the last samples received
        self._marks: list[NDArray[np.float32]] = []  # of the samples from `_sent` on
        self._finished = False

    def __del__(self) -> None:
        if self.slot is not None:
            self._embedder.slots.give_back(self.slot)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take audio [n], n from 0 on, in [-1, 1]; give the marked audio [m] that is ready.

        Raises: ValueError when a sample is not finite, or the stream is over.
        """
        return self._alone(samples)

    def finish(self) -> NDArray[np.float32]:
        """The rest of the marked audio; the stream is over."""
        return self._alone(None)

    def _alone(self, samples: NDArray[np.float32] | None) -> NDArray[np.float32]:
        [result] = self._embedder.advance([(self, samples)])
        if isinstance(result, Exception):
            raise result
        return result

    # The parts of a step, before and after the passes; for Embedder.advance.

    def take(self, samples: NDArray[np.float32] | None) -> None:
        """Audio [n], None at the end. Raises: ValueError as `push` does."""
        if self._finished:
            raise ValueError("the stream is finished")
        reach = self._embedder.reach
        if samples is not None:
            samples = np.asarray(samples, np.float32)
            if samples.ndim != 1:
                raise ValueError(f"samples have {samples.ndim} dimensions, must have 1")
            if not np.isfinite(samples).all():
                raise ValueError("samples must be finite, found NaN or infinity")
            # What neither the next column's window nor the listener needs is left behind.
            first = self._received - len(self._held)
            needed = max(0, min(self._sent, reach.begin(self.column)) - first)
            self._held = np.concatenate([self._held[needed:], samples])
            self._received += len(samples)
            self.due = reach.columns(self._received) - self.column
            return
        self._finished = True
        if self._received:
            self.end = reach.inward.outputs(self._received)
            self.due = reach.last_column(self.end) - self.column

    def window(self, into: NDArray[np.float32]) -> None:
        """Write the samples [n] from `reach.begin(column)` on; zeros before and after the stream."""
        begin = self._embedder.reach.begin(self.column) - (self._received - len(self._held))
        low, high = max(0, begin), min(begin + len(into), len(self._held))
        high = max(low, high)
        into[: low - begin] = 0
        into[low - begin : high - begin] = self._held[low:high]
        into[high - begin :] = 0

    def advance(self, columns: int) -> Span:
        """So many columns are computed now; which samples' mark they give."""
        reach = self._embedder.reach
        before, self.column, self.due = self._known, self.column + columns, self.due - columns
        self._known = min(self._received, reach.known(self.column))
        place = before % reach.outward.up
        return Span(place, place + self._known - before)

    def add(self, marks: NDArray[np.float32]) -> None:
        """The next samples' mark."""
        self._marks.append(marks)

    def give(self) -> NDArray[np.float32]:
        """The marked audio that is ready. Raises: RuntimeError when the mark is not finite."""
        if not self._marks:
            return np.zeros(0, np.float32)
        marks = self._marks[0] if len(self._marks) == 1 else np.concatenate(self._marks)
        self._marks = []
        if not np.isfinite(marks).all():
            raise RuntimeError("the nets gave a mark that is not finite: their weights are damaged")
        start = self._sent - (self._received - len(self._held))
        self._sent += len(marks)
        return self._held[start : start + len(marks)] + marks


@dataclass(frozen=True)
class Span:
    """Samples [start, stop) of what a pass gives for a stream."""

    start: int
    stop: int
