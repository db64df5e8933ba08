"""Which passes are due and what each is told: whole numbers, reckoned for all streams at once. Knows no torch.

Positions are the stream's own where they say samples, else the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.watermark.reach import Reach

if TYPE_CHECKING:
    from torch import Tensor

    from services.watermark.spectrum import Framing

FAR = 1 << 40  # the end of a stream that goes on
MOST_COLUMNS = 512  # of one pass, all streams together: what the nets hold at once is bounded
Each = NDArray[np.int64]  # a number of each stream


def most_streams(columns: int) -> int:
    """Of a pass of so many columns."""
    return max(1, MOST_COLUMNS // columns)


class Places(NamedTuple):
    """Where streams are between passes."""

    column: Each  # the next one
    received: Each  # samples that were in passes
    known: Each  # samples that were given back marked
    end: Each  # the stream's length, FAR while it goes on


class Numbers(NamedTuple):
    """Of each stream of a pass: what a pass is told."""

    slot: Each | Tensor
    first: Each | Tensor  # its next column
    count: Each | Tensor  # columns it brings, 1 at least
    heard: Each | Tensor  # samples it had brought before
    received: Each | Tensor  # samples with those of this pass
    window: Each | Tensor  # sample at which its window begins
    start: Each | Tensor  # position of that
    end: Each | Tensor
    mirror: Each | Tensor  # see Framing.mirror
    total: Each | Tensor  # columns of the stream
    known: Each | Tensor  # samples it was given back before
    given: Each | Tensor  # samples it is given back now
    out: Each | Tensor  # see Reach.out_of
    place: Each | Tensor  # sample `known`, counted from there


class Due(NamedTuple):
    """A pass of `columns` columns. members: places of its streams in the list that was asked about."""

    columns: int
    members: list[int]
    numbers: Numbers


class Plan:
    """Of one model at one rate."""

    def __init__(self, reach: Reach, framing: Framing, columns: Sequence[int], most: int):
        """columns: what passes may be for, in rising order; a stream then may bring fewer. Empty: for whatever
        streams bring, equally many each, `most` at most."""
        self._reach, self._framing = reach, framing
        self._columns, self._most = np.array(columns, np.int64), columns[-1] if columns else most

    @property
    def most_columns(self) -> int:
        """Of one stream in one pass."""
        return self._most

    def due(self, slots: Each, places: Places, waiting: Each, finished: NDArray[np.bool_]) -> Iterator[Due]:
        """The passes to begin now, one after another; `places` and `waiting` are then as they are after those.

        waiting: samples of each stream that are in no pass yet. finished: to whom no more will come.
        """
        reach = self._reach
        column, received, known, end = places
        end[:] = np.where(finished, reach.inward.outputs(received + waiting), end)
        due = np.where(finished, reach.last_column(end), reach.columns(received + waiting)) - column
        while (now := np.flatnonzero(due > 0)).size:
            counts = np.minimum(due, self._most)
            enough = np.minimum(waiting, reach.samples(column + counts) - received)
            samples = np.where(due > counts, enough, waiting)
            sizes = counts[now]
            if self._columns.size:
                sizes = self._columns[np.searchsorted(self._columns, sizes)]
            for size in np.unique(sizes).tolist():  # short ones first
                alike, most = now[sizes == size], most_streams(size)
                for start in range(0, len(alike), most):
                    rows = alike[start : start + most]
                    here = Places(column[rows], received[rows], known[rows], end[rows])
                    yield Due(size, rows.tolist(), self._numbers(slots[rows], here, counts[rows], samples[rows]))
            column[now] += counts[now]
            received[now] += samples[now]
            waiting[now] -= samples[now]
            due[now] -= counts[now]
            known[now] = np.minimum(received, reach.known(column))[now]

    def idle(self, slot: int, columns: int) -> Each:
        """The numbers of nobody's row in a pass of so many columns."""
        places = Places(*np.array([[self._reach.settled], [0], [0], [FAR]]))
        return np.stack(self._numbers(np.array([slot]), places, np.array([columns]), np.array([0])))[:, 0]

    def within(self, numbers: Numbers) -> bool:
        """Whether no column, with those that the nets are behind, lies before or after its stream."""
        first, count, total = numbers.first, numbers.count, numbers.total
        return bool(((first >= self._reach.settled) & (first + count <= total)).all())

    def _numbers(self, slots: Each, places: Places, counts: Each, samples: Each) -> Numbers:
        reach, framing = self._reach, self._framing
        column, heard, known, end = places
        received = heard + samples
        return Numbers(
            slot=slots,
            first=column,
            count=counts,
            heard=heard,
            received=received,
            window=reach.begin(column),
            start=reach.first_block(column) * reach.inward.up,
            end=end,
            mirror=framing.mirror(end),
            total=framing.columns(end),
            known=known,
            given=np.minimum(received, reach.known(column + counts)) - known,
            out=reach.out_of(column, known),
            place=known % reach.outward.up,
        )
