"""Which samples a column needs, and which samples a column completes. Knows no torch.

"Samples" are at the stream's rate unless a docstring says that they are at the model's. All positions and
counts are integers, or integer arrays with one entry per stream of a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from services.watermark.hparams import Hparams

if TYPE_CHECKING:
    from services.runtime.polyphase import IntOrArray, PolyphaseFilter
    from services.watermark.resampler import FilterBank
    from services.watermark.spectrum import Framing


class ReceptiveField:
    """For one model at one stream rate; immutable and shared by all streams."""

    def __init__(
        self,
        shape: Hparams,
        framing: Framing,
        filters: tuple[PolyphaseFilter, PolyphaseFilter],
        banks: tuple[FilterBank, FilterBank],
    ):
        """filters, banks: from the stream's rate to the model's, and back."""
        self._shape, self._framing = shape, framing
        self.inward, self.outward = filters
        self._banks = banks

    def complete_columns(self, samples: IntOrArray) -> IntOrArray:
        """Columns that the first `samples` samples complete when more follow."""
        return self._framing.complete_columns(self.inward.complete_outputs(samples))

    def min_samples(self, columns: IntOrArray) -> IntOrArray:
        """The fewest samples that complete `columns` columns (at least one) when more follow."""
        ended = columns * self._framing.hop + (columns == 1)  # at the model's rate; see Framing.complete_columns
        return self.inward.half + (ended - 1) * self.inward.down // self.inward.up + 1

    def max_columns(self, samples: int) -> int:
        """Most columns that `samples` further samples complete."""
        return -(-self.inward.outputs(samples) // self._framing.hop)

    def max_samples(self, columns: int) -> int:
        """Most samples a stream can bring that complete `columns` columns and no further one."""
        hop, filter_in = self._framing.hop, self.inward
        return filter_in.half + (columns + 1) * hop * filter_in.down // filter_in.up + 2

    def last_column(self, length: IntOrArray) -> IntOrArray:
        """Columns to compute for a whole stream of `length` samples at the model's rate.

        Includes the columns after its end that flush the nets and the resampler.
        """
        hops = -(-self.outward.half // self._framing.hop)
        return self._framing.columns(length) + self._shape.context_columns + hops

    @property
    def warmup_columns(self) -> int:
        """From this column on, neither a column's mark nor what it depends on lies before the stream."""
        return self._shape.context_columns + 1

    def marked_samples(self, column: IntOrArray) -> IntOrArray:
        """Samples whose mark is final once `column` columns are computed."""
        return self.outward.complete_outputs(np.maximum(column - self.warmup_columns, 0) * self._framing.hop)

    def window_start(self, column: IntOrArray) -> IntOrArray:
        """First sample of the window from which `column` and later columns are computed."""
        return self.first_block(column) * self.inward.down - self._banks[0].lookback

    def first_block(self, column: IntOrArray) -> IntOrArray:
        """The column's first block in the inward bank: one before what it needs, for the mirrored end."""
        return (column * self._framing.hop - self._framing.half) // self.inward.up - 1

    def first_exact_sample(self, column: int) -> int:
        """First sample of whose mark no part depends on columns before `column`."""
        framing = self._framing
        first = (column + self._shape.context_columns) * framing.hop + framing.half + self.outward.half
        return self.outward.outputs(first)

    def window_length(self, columns: int) -> int:
        """Samples in the window of `columns` columns."""
        bank, framing = self._banks[0], self._framing
        return bank.input_length(bank.blocks((columns - 1) * framing.hop + framing.n_fft) + 1)

    def max_marked_samples(self, columns: int) -> int:
        """Most samples whose mark becomes final with `columns` more columns."""
        return self.outward.outputs(columns * self._framing.hop) + 1

    def output_blocks(self, columns: int) -> int:
        """Blocks of the outward bank that hold every sample whose mark `columns` columns make final."""
        return self._banks[1].blocks(self.max_marked_samples(columns))

    def output_offset(self, column: IntOrArray, emitted: IntOrArray) -> IntOrArray:
        """Start of the outward bank's input window whose first block holds sample `emitted`.

        In samples at the model's rate, relative to the end of what the first `column` columns (those before the
        pass) have given; so it is mostly negative.
        """
        bank = self._banks[1]
        return emitted // bank.up * bank.down - bank.lookback - (column - self.warmup_columns) * self._framing.hop

    @property
    def first_samples(self) -> int:
        """The fewest samples of a new stream that make the mark of any sample final when more follow."""
        column = self.warmup_columns + 1
        while self.marked_samples(column) <= 0:
            column += 1
        return int(self.min_samples(column))

    def history_samples(self, lookahead: int, columns: int) -> int:
        """Size of a stream's sample ring, so that a pass of at most `columns` columns overwrites nothing needed.

        lookahead: most samples that a stream holds back.
        """
        bank = self._banks[0]
        return lookahead + self.max_samples(columns) + 2 * bank.down + bank.lookback + 8
