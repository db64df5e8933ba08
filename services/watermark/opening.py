"""A stream's first samples, marked before the look-ahead has come. Knows no torch.

The mark of a sample depends on the audio after it, so a stream's first sample waits for the whole look-ahead, 375 ms with the
public model. An opening does not: the first samples are marked as a clip of that length would be, with nothing after it, and
are given at once. Its last part fades into the stream's own mark, which is computed as ever, from the first sample on; after
the opening no sample differs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FADE_S = 0.01  # long enough for no click at the mark's level; what is in the fade comes with the stream's own mark


class Opening:
    """In the place of its stream while a pass marks it (Embedder): a clip that has ended, in the stream's slot."""

    finished = True

    def __init__(
        self, slot: int, samples: NDArray[np.float32], fade: int, give: Callable[[NDArray[np.float32], bool], None]
    ):
        """samples: [n]. fade: the last of them, fewer than n, whose mark fades into the stream's own.

        give: is called once with the marked samples before the fade, and whether the mark is finite.
        """
        self.slot, self.pending = slot, len(samples)
        self._give: Callable[[NDArray[np.float32], bool], None] | None = give
        self._samples, self._marked, self._finite = samples, np.zeros(0, np.float32), True
        self._size, self._weight = len(samples), np.arange(1, fade + 1, dtype=np.float32) / (fade + 1)
        self._joined = 0  # samples of the stream's own marked audio that came

    @property
    def is_over(self) -> bool:
        """Whether the stream's own marked audio has come that far."""
        return self._joined >= self._size

    def fill(self, into: NDArray[np.float32]) -> None:
        """Move the next len(into) samples to a pass's input."""
        first = self._size - self.pending
        into[:] = self._samples[first : first + len(into)]
        self.pending -= len(into)

    def note_progress(self, columns: int, power_sum: float) -> None:
        """A clip of its own: its columns are not the stream's."""

    def append_marked(self, marked: NDArray[np.float32], finite: bool) -> None:
        """The next marked samples; finite: whether all of them are."""
        self._marked, self._finite = np.concatenate([self._marked, marked]), self._finite and finite
        if len(self._marked) == self._size and (give := self._give) is not None:
            self._give = None  # it holds the stream, which holds this: a dropped stream must free its slot at once
            give(self._marked[: self._size - len(self._weight)], self._finite)

    def join(self, marked: NDArray[np.float32]) -> NDArray[np.float32]:
        """The stream's own next marked samples [n] → those that are to be given: none of the head, the fade, all after it.

        Changes `marked`.
        """
        begin, self._joined = self._joined, self._joined + len(marked)
        head, weight = self._size - len(self._weight), self._weight
        first = max(0, head - begin)
        own = marked[first : max(first, self._size - begin)]
        at = max(begin, head)
        given, share = self._marked[at : at + len(own)], weight[at - head : at - head + len(own)]
        own += (given - own) * (1 - share)
        return marked[first:]
