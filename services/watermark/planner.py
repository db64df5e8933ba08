"""Which passes to run and the control values of each: integers, computed for all streams at once. Knows no torch.

Positions in samples are at the stream's rate unless they are said to be at the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.watermark.receptive_field import ReceptiveField

if TYPE_CHECKING:
    from services.watermark.spectrum import Framing

OPEN_LENGTH = 1 << 40  # length of a stream that has not ended
MAX_PASS_COLUMNS = 512  # of one pass, summed over its streams: bounds the memory of the nets
IntArray = NDArray[np.int64]  # one entry per stream
Array = TypeVar("Array")


def max_streams(columns: int) -> int:
    """Most streams in a pass of `columns` columns each."""
    return max(1, MAX_PASS_COLUMNS // columns)


class StreamPosition(NamedTuple):
    """Where each stream is between passes."""

    next_column: IntArray
    consumed: IntArray  # samples that passes have taken
    emitted: IntArray  # samples returned marked
    length: IntArray  # at the model's rate; OPEN_LENGTH while the stream is open


class PassControl(NamedTuple, Generic[Array]):
    """Control values of a pass, one entry per stream: IntArray on the host, an int64 tensor on the device."""

    slot: Array
    first_column: Array
    column_count: Array  # columns that the stream brings, at least 1
    consumed: Array  # samples taken before this pass
    available: Array  # samples taken, those of this pass included
    window_start: Array  # first sample of the stream's window
    window_position: Array  # where the resampled window begins, at the model's rate
    length: Array  # see StreamPosition
    mirror: Array  # see Framing.mirror
    total_columns: Array  # of the stream
    emitted: Array  # samples returned before this pass
    emit_count: Array  # samples that this pass returns
    output_offset: Array  # see ReceptiveField.output_offset
    output_index: Array  # index of sample `emitted` in the outward bank's output


class PlannedPass(NamedTuple):
    """A pass of `columns` columns. indices: its streams, as indices into the caller's list."""

    columns: int
    indices: list[int]
    control: PassControl[IntArray]


class PassPlanner:
    """For one model at one stream rate."""

    def __init__(self, field: ReceptiveField, framing: Framing, columns: Sequence[int], max_columns: int):
        """columns: the allowed pass lengths, ascending; a stream may bring fewer columns than its pass is long.

        Empty: a pass has the length that its streams bring, all the same, at most max_columns.
        """
        self._field, self._framing = field, framing
        self._columns = np.array(columns, np.int64)
        self._max_columns = columns[-1] if columns else max_columns

    @property
    def max_columns(self) -> int:
        """Of one stream in one pass."""
        return self._max_columns

    def plan(
        self, slots: IntArray, position: StreamPosition, pending: IntArray, finished: NDArray[np.bool_]
    ) -> Iterator[PlannedPass]:
        """The passes to run now, in order. Side effect: advances `position` and `pending` past them.

        pending: samples of each stream that no pass has taken. finished: streams that get no more samples.
        """
        field = self._field
        column, consumed, emitted, length = position
        length[:] = np.where(finished, field.inward.outputs(consumed + pending), length)
        due = np.where(finished, field.last_column(length), field.complete_columns(consumed + pending)) - column
        while (now := np.flatnonzero(due > 0)).size:
            counts = np.minimum(due, self._max_columns)
            enough = np.minimum(pending, field.min_samples(column + counts) - consumed)
            samples = np.where(due > counts, enough, pending)
            sizes = counts[now]
            if self._columns.size:
                sizes = self._columns[np.searchsorted(self._columns, sizes)]
            for size in np.unique(sizes).tolist():  # short passes first
                same_size, limit = now[sizes == size], max_streams(size)
                for start in range(0, len(same_size), limit):
                    rows = same_size[start : start + limit]
                    here = StreamPosition(column[rows], consumed[rows], emitted[rows], length[rows])
                    control = self._control(slots[rows], here, counts[rows], samples[rows])
                    yield PlannedPass(size, rows.tolist(), control)
            column[now] += counts[now]
            consumed[now] += samples[now]
            pending[now] -= samples[now]
            due[now] -= counts[now]
            emitted[now] = np.maximum(emitted, np.minimum(consumed, field.marked_samples(column)))[now]

    def padding_row(self, slot: int, columns: int) -> IntArray:
        """Control values of a padding row in a pass of `columns` columns, [fields of PassControl]."""
        position = StreamPosition(*np.array([[self._field.warmup_columns], [0], [0], [OPEN_LENGTH]]))
        return np.stack(self._control(np.array([slot]), position, np.array([columns]), np.array([0])))[:, 0]

    def is_interior(self, control: PassControl[IntArray]) -> bool:
        """Whether all columns of the pass, and those that the nets lag behind, lie within their streams."""
        first, count, total = control.first_column, control.column_count, control.total_columns
        return bool(((first >= self._field.warmup_columns) & (first + count <= total)).all())

    def _control(
        self, slots: IntArray, position: StreamPosition, counts: IntArray, samples: IntArray
    ) -> PassControl[IntArray]:
        field, framing = self._field, self._framing
        column, consumed, emitted, length = position
        available = consumed + samples
        return PassControl(
            slot=slots,
            first_column=column,
            column_count=counts,
            consumed=consumed,
            available=available,
            window_start=field.window_start(column),
            window_position=field.first_block(column) * field.inward.up,
            length=length,
            mirror=framing.mirror(length),
            total_columns=framing.columns(length),
            emitted=emitted,
            # A stream that began at a checkpoint emits nothing before its first exact sample.
            emit_count=np.maximum(np.minimum(available, field.marked_samples(column + counts)) - emitted, 0),
            output_offset=field.output_offset(column, emitted),
            output_index=emitted % field.outward.up,
        )
