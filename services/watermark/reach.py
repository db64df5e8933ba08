"""Which samples a column needs, and which samples' mark it settles. Knows no torch.

Positions are of the stream's rate where they say samples, and of the model's where they say so. They are
whole numbers, or arrays of those: of one stream, or of all that take part in a pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from services.watermark.hparams import Hparams

if TYPE_CHECKING:
    from services.watermark.resampler import Bank, Kernel, Whole
    from services.watermark.spectrum import Framing


class Reach:
    """Of one model at one rate; shared by all streams, never changed."""

    def __init__(self, shape: Hparams, framing: Framing, kernels: tuple[Kernel, Kernel], banks: tuple[Bank, Bank]):
        """kernels, banks: from the stream's rate to the model's, and back."""
        self._shape, self._framing = shape, framing
        self.inward, self.outward = kernels
        self._banks = banks

    def columns(self, samples: Whole) -> Whole:
        """Columns that so many samples complete when more follow."""
        return self._framing.known(self.inward.known(samples))

    def samples(self, columns: Whole) -> Whole:
        """The fewest samples that complete so many columns, one at least, when more follow."""
        ended = columns * self._framing.hop + (columns == 1)  # at the model's rate; see Framing.known
        return self.inward.half + (ended - 1) * self.inward.down // self.inward.up + 1

    def most_columns(self, samples: int) -> int:
        """Columns that so many samples more complete, at most."""
        return -(-self.inward.outputs(samples) // self._framing.hop)

    def most_samples(self, columns: int) -> int:
        """No stream can bring more that complete so many columns and no further one."""
        hop, kernel = self._framing.hop, self.inward
        return kernel.half + (columns + 1) * hop * kernel.down // kernel.up + 2

    def last_column(self, end: Whole) -> Whole:
        """Columns to be computed in all for a stream of `end` samples at the model's rate, those behind
        its last one included, by which the nets and the resampler give the rest."""
        hops = -(-self.outward.half // self._framing.hop)
        return self._framing.columns(end) + self._shape.reach + hops

    @property
    def settled(self) -> int:
        """From this column on a column's mark, and those it depends on, are none of columns before the stream."""
        return self._shape.reach + 1

    def known(self, column: Whole) -> Whole:
        """Samples whose mark is known when `column` columns are computed."""
        return self.outward.known(np.maximum(column - self.settled, 0) * self._framing.hop)

    def begin(self, column: Whole) -> Whole:
        """The first sample of the window from which `column` and later ones are computed."""
        return self.first_block(column) * self.inward.down - self._banks[0].lead

    def first_block(self, column: Whole) -> Whole:
        """Its block of the inward bank: one more than the column itself needs, for what is mirrored at the end."""
        return (column * self._framing.hop - self._framing.half) // self.inward.up - 1

    def window(self, columns: int) -> int:
        """Samples of the window of so many columns."""
        bank, framing = self._banks[0], self._framing
        return bank.window(bank.blocks((columns - 1) * framing.hop + framing.n_fft) + 1)

    def most_known(self, columns: int) -> int:
        """Samples whose mark so many columns settle, at most."""
        return self.outward.outputs(columns * self._framing.hop) + 1

    def blocks_out(self, columns: int) -> int:
        """Blocks of the outward bank that hold all whose mark so many columns settle."""
        return self._banks[1].blocks(self.most_known(columns))

    def out_of(self, column: Whole, known: Whole) -> Whole:
        """Where the outward bank's window lies whose first block holds sample `known`: at the model's rate, from the
        end of what `column` columns give (those before the pass) on, so mostly before it."""
        bank = self._banks[1]
        return known // bank.up * bank.down - bank.lead - (column - self.settled) * self._framing.hop

    @property
    def first_samples(self) -> int:
        """The fewest samples of a stream that settle the mark of any when more follow."""
        column = self.settled + 1
        while self.known(column) <= 0:
            column += 1
        return int(self.samples(column))

    def kept(self, lookahead: int, columns: int) -> int:
        """Samples to keep of each stream, so that what a pass of at most `columns` columns adds writes over none
        that is needed still. lookahead: most samples that a stream holds back."""
        bank = self._banks[0]
        return lookahead + self.most_samples(columns) + 2 * bank.down + bank.lead + 8
