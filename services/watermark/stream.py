"""One stream as its owner sees it: audio in, marked audio out. Knows no torch.

The stream's position, and its samples that a pass has taken, lie in its slot (state_pool.py, embed_pass.py).
Here are the samples that no pass has taken yet, and the marked ones that were not returned yet.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.watermark.opening import Opening

if TYPE_CHECKING:
    from services.watermark.embedder import Embedder


@dataclass(frozen=True)
class Checkpoint:
    """Where a stream can be marked on without the audio before: see EmbedCheckpoint of the contract."""

    first_sample: int
    first_marked_sample: int
    columns: int
    power_sum: float


class EmbedStream:
    """Only `close` is thread-safe. Dropping the stream frees its slot.

    origin: the checkpoint that it begins at. first_needed: samples that it must have to get a slot; one that ends with
    fewer gets it without, unless it has an origin. columns: that passes have computed. power_sum: over them.
    """

    def __init__(self, embedder: Embedder, origin: Checkpoint | None = None, first_needed: int = 1):
        self._embedder, self.origin, self.first_needed = embedder, origin, first_needed
        self._opening: Opening | None = None
        self.columns, self.power_sum = 0, 0.0
        self.slot: int | None = None  # in the embedder's state pool, from its first samples on
        self.pending = 0  # samples that no pass has taken
        self.finished = False
        self._samples: deque[NDArray[np.float32]] = deque()  # the pending ones
        self._marked: list[NDArray[np.float32]] = []  # not returned yet
        self._non_finite = False
        self._close_lock = threading.Lock()
        self._in_pass = self._closed = False

    def __del__(self) -> None:
        self._release_slot()

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take audio [n], n ≥ 0, in [-1, 1]; return the marked audio [m] that is ready.

        Raises: ValueError when a sample is not finite, or the stream is over.
        """
        return self._advance(samples)

    def finish(self) -> NDArray[np.float32]:
        """The rest of the marked audio; ends the stream."""
        return self._advance(None)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """After all columns so far; None where the stream's beginning is too near."""
        return self._embedder.checkpoint(self.columns, self.power_sum)

    def close(self) -> None:
        """Free the slot, at once or after the pass that the stream is in. May be called in any thread."""
        with self._close_lock:
            self._closed = True
            in_pass = self._in_pass
        if not in_pass:
            self._release_slot()

    def _advance(self, samples: NDArray[np.float32] | None) -> NDArray[np.float32]:
        [result] = self._embedder.advance([(self, samples)])
        if isinstance(result, Exception):
            raise result
        return result

    # For Embedder.advance: before, during and after the passes.

    def accept(self, samples: NDArray[np.float32] | None) -> None:
        """Queue audio [n]; None ends the stream. Raises: ValueError as `push` does."""
        if self.finished:
            raise ValueError("the stream is finished")
        if samples is not None:
            samples = np.asarray(samples, np.float32)
            if samples.ndim != 1:
                raise ValueError(f"samples have {samples.ndim} dimensions, must have 1")
            # The sum of squares is a fast test: it is finite only if all samples are, but may overflow if they are.
            if not math.isfinite(np.dot(samples, samples)) and not np.isfinite(samples).all():
                raise ValueError("samples must be finite, found NaN or infinity")
        with self._close_lock:
            if self._closed:
                raise ValueError("the stream is closed")
            self._in_pass = True
        if samples is None:
            self.finished = True
        elif len(samples):
            self._samples.append(samples)
            self.pending += len(samples)

    @property
    def wants_slot(self) -> bool:
        """Whether passes can begin and none has."""
        ends_early = self.finished and self.origin is None and self.pending > 0
        return self.slot is None and (self.pending >= self.first_needed or ends_early)

    def open_with(self, count: int, fade: int) -> Opening:
        """Begin with an opening of the first `count` pending samples, which stay pending; the slot is there."""
        assert self.slot is not None
        self._samples = deque([np.concatenate(self._samples)])
        self._opening = Opening(self.slot, self._samples[0][:count].copy(), fade, self._append)
        return self._opening

    def fill(self, into: NDArray[np.float32]) -> None:
        """Move the next len(into) pending samples to a pass's input."""
        self.pending -= len(into)
        start = 0
        while start < len(into):
            samples = self._samples.popleft()
            count = min(len(samples), len(into) - start)
            into[start : start + count] = samples[:count]
            if count < len(samples):
                self._samples.appendleft(samples[count:])
            start += count

    def note_progress(self, columns: int, power_sum: float) -> None:
        """What passes have computed so far: columns, and their power."""
        self.columns, self.power_sum = columns, power_sum

    def append_marked(self, marked: NDArray[np.float32], finite: bool) -> None:
        """The next marked samples; finite: whether all of them are."""
        if self._opening is not None:
            marked = self._opening.join(marked)
            if self._opening.is_over:
                self._opening = None
        self._append(marked, finite)

    def _append(self, marked: NDArray[np.float32], finite: bool) -> None:
        self._marked.append(marked)
        self._non_finite |= not finite

    def take_marked(self) -> NDArray[np.float32]:
        """The marked audio that is ready. Raises: RuntimeError when the mark is not finite."""
        marked, self._marked = self._marked, []
        if self._non_finite:
            raise RuntimeError("the nets gave a mark that is not finite: their weights are damaged")
        if not marked:
            return np.zeros(0, np.float32)
        return marked[0] if len(marked) == 1 else np.concatenate(marked)

    def end_pass(self) -> None:
        """The stream is in no pass any more. Harmless when called twice."""
        if not self._in_pass:
            return
        if self._samples:  # copied, since the caller may reuse its buffer; joined, however small its pieces were
            self._samples = deque([np.concatenate(self._samples)])
        with self._close_lock:
            self._in_pass = False
            closed = self._closed
        if closed:
            self._release_slot()

    def _release_slot(self) -> None:
        with self._close_lock:
            slot, self.slot = self.slot, None
        if slot is not None:
            self._embedder.state.release(slot)
