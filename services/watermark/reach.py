"""Which samples a column needs, and which samples' mark it settles. Integers alone; knows no torch.

Positions are of the stream's rate where they say samples, and of the model's where they say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.watermark.hparams import Hparams

if TYPE_CHECKING:
    from services.watermark.resampler import Bank, Kernel
    from services.watermark.spectrum import Framing


class Reach:
    """Of one model at one rate; shared by all streams, never changed."""

    def __init__(self, shape: Hparams, framing: Framing, kernels: tuple[Kernel, Kernel], banks: tuple[Bank, Bank]):
        """kernels, banks: from the stream's rate to the model's, and back."""
        self._shape, self._framing = shape, framing
        self.inward, self.outward = kernels
        self._banks = banks

    def columns(self, samples: int) -> int:
        """Columns that so many samples complete when more follow."""
        return self._framing.known(self.inward.known(samples))

    def last_column(self, end: int) -> int:
        """Columns to be computed in all for a stream of `end` samples at the model's rate, those behind
        its last one included, by which the nets and the resampler give the rest."""
        hops = -(-self.outward.half // self._framing.hop)
        return self._framing.columns(end) + self._shape.reach + hops

    def known(self, column: int) -> int:
        """Samples whose mark is known when `column` columns are computed."""
        return self.outward.known(max(0, column - self._shape.reach - 1) * self._framing.hop)

    def begin(self, column: int) -> int:
        """The first sample of the window from which `column` and later ones are computed."""
        return self.first_block(column) * self.inward.down - self._banks[0].lead

    def first_block(self, column: int) -> int:
        """Its block of the inward bank: one more than the column itself needs, for what is mirrored at the end."""
        return (column * self._framing.hop - self._framing.half) // self.inward.up - 1

    def window(self, columns: int) -> int:
        """Samples of the window of so many columns."""
        bank, framing = self._banks[0], self._framing
        return bank.window(bank.blocks((columns - 1) * framing.hop + framing.n_fft) + 1)

    def blocks_out(self, columns: int) -> int:
        """Blocks of the outward bank that hold all whose mark so many columns settle."""
        return self._banks[1].blocks(self.outward.outputs(columns * self._framing.hop) + 1)
