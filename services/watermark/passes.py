"""What a pass computes: new samples of some streams in, their marked samples out, on state that lies in slots.

Tensors in, tensors out, without waiting for the device and without asking it anything, so that a pass may be
captured (graphs.py). Where each stream is, and what follows from it in whole numbers, the host reckons (plan.py)
and gives along with the samples: one piece of memory, one copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER, Hparams
from services.watermark.level import Level
from services.watermark.marker import Marker
from services.watermark.plan import Numbers
from services.watermark.reach import Reach
from services.watermark.resampler import Bank
from services.watermark.slots import Slots
from services.watermark.spectrum import Framing, Synthesis

# Columns so far below the level are left as they are. A mark there would take all that is in its
# bins, whatever the strength, and holes in the faint noise of pauses are most of what DNSMOS hears
# of a mark. Embedded bundle, 40 clips each, loss of OVRL / clips in which the stock decoder, which
# forgives no symbol, spells the key: marked everywhere 0.061 / 40; down to 35 dB below the level
# 0.045 / 39; to 30 dB 0.024 / 38. (130 clips: 0.033 at 35 dB, 0.022 at 30 dB.)
_SILENCE_DB = 35.0


class Given:
    """Numbers and samples [B, n] of a pass in one piece of memory."""

    def __init__(self, streams: int, whole: Tensor):
        """whole: float32, what `of` makes."""
        self._streams, self.whole = streams, whole

    @classmethod
    def of(cls, streams: int, samples: int, *, pinned: bool = False) -> Given:
        """On the host, whatever was in that memory."""
        return cls(streams, torch.empty(streams * (2 * len(Numbers._fields) + samples), pin_memory=pinned))

    def to(self, device: torch.device) -> Given:
        """The same there, without waiting for it."""
        return Given(self._streams, self.whole.to(device, non_blocking=True))

    @property
    def numbers(self) -> Tensor:
        """[fields of Numbers, B] int64."""
        return self.whole[: 2 * len(Numbers._fields) * self._streams].view(torch.int64).view(-1, self._streams)

    @property
    def samples(self) -> Tensor:
        """[B, n]."""
        return self.whole[2 * len(Numbers._fields) * self._streams :].view(self._streams, -1)


class Passes:
    """Of one model with one key. Passes on the same slots are to be begun one after another."""

    def __init__(
        self,
        shape: Hparams,
        framing: Framing,
        reach: Reach,
        banks: tuple[Bank, Bank],
        marker: Marker,
        slots: Slots,
        *,
        symbols: Tensor,
        strength: float,
        level: Level,
        columns_per_second: float,
        kept_samples: int,
        most_columns: int,
    ):
        """
        symbols: what columns say, again and again. strength: of the mark, as a share of the level.
        kept_samples: of each stream, see Reach.kept. most_columns: of a pass.
        """
        self._shape, self._framing, self._reach, self._slots = shape, framing, reach, slots
        self._inward, self._outward = banks
        self._marker, self._synthesis = marker, Synthesis(framing, slots)
        self._symbols, self._strength, self._level = symbols, strength, level
        self._columns_per_second, self._ring = columns_per_second, kept_samples
        # Samples, each at its position's remainder; one more place takes what is no sample.
        self._audio = slots.add(kept_samples + 1)
        self._power = slots.add(dtype=torch.float64)  # of all columns so far
        # Columns whose mark is not known yet: their spectrum in the band, and the mark's scale.
        self._spectra = slots.add(shape.reach, shape.message_band_size, dtype=torch.complex64)
        self._scales = slots.add(shape.reach)
        # The mark at the model's rate, as far back as the next output's block may reach.
        self._marks = slots.add(2 * self._outward.half + self._outward.down)
        longest = (reach.most_samples, reach.window, framing.span, self._out_length, reach.most_known)
        slots.reserve(max(each(most_columns) for each in longest))

    def run(
        self, numbers: Tensor, samples: Tensor, columns: int, *, mixed: bool = True, inside: bool = False
    ) -> Tensor:
        """One pass.

        numbers: [fields of Numbers, B]. samples: the streams' next ones [B, n], of which each brings received - heard.
        mixed: whether streams may bring fewer than `columns` columns.
        inside: no column, with those that the nets are behind, lies before or after its stream.
        Returns: [B, m + 1]: samples, of which `given` count, and 1 where those are finite, else 0.
        """
        shape, framing, slots = self._shape, self._framing, self._slots
        n = Numbers(*numbers.unbind(0))
        rows, counts = n.slot, n.count if mixed else None
        each = slots.upto(columns)
        index, total = n.first[:, None] + each, n.total[:, None]  # [B, k]

        def valid(behind: Tensor) -> Tensor:  # [n, 1, 1] → [n, B, k]
            before = index - behind
            return (before >= 0) & (before < total)

        self._hear(n, samples)
        window = self._heard(n, n.window, self._reach.window(columns))
        spectra = framing.analyse(
            self._inward(window), n.start, framing.begin(n.first), n.end, n.mirror, slots.upto(framing.span(columns))
        )
        energy = torch.view_as_real(spectra).square().sum(dim=3).mean(dim=2)  # [B, k]
        power = energy / framing.window_energy
        before = slots.read(self._power, rows)
        level = self._level.step(power, before, n.first, self._columns_per_second)
        own = power if counts is None else power.masked_fill(each >= counts[:, None], 0)
        slots.write(self._power, rows, before + own.double().sum(dim=1))
        gain = torch.sqrt(TRAINING_POWER / level)  # what brings the stream to the training level
        if shape.frame_level_normalization:
            carrier_rms = torch.sqrt(energy)
        elif shape.utterance_level_normalization:
            # Carrier cells of audio of power P have the mean square P * sum(window ** 2) (Parseval).
            carrier_rms = torch.sqrt(level * framing.window_energy)
        else:
            carrier_rms = 1 / gain
        audible = power > level * 10 ** (-_SILENCE_DB / 10)
        scale = slots.behind(self._scales, rows, carrier_rms * self._strength * audible, counts)[:, :columns, None]
        spectrum = slots.behind(self._spectra, rows, spectra[..., : shape.message_band_size], counts)[:, :columns]
        carrier = spectra[..., : shape.rows].abs() * gain[..., None]
        symbols = self._symbols[index % shape.message_len]
        # Of columns `reach` before these:
        mark = self._marker.step(rows, carrier, symbols, None if inside else valid, counts)
        # The stock leaves relu(magnitude - mark) at the old phase: a cell loses at most all it has.
        magnitude = spectrum.abs()
        loss = torch.minimum(mark * scale, magnitude)
        taken = -spectrum * (loss / magnitude.clamp_min(1e-30))
        wave = self._synthesis.step(rows, taken, counts)  # [B, k, hop]
        if not inside:  # what lies before the first column's centre, and behind the last one's, is not the stream's
            beyond = (index <= shape.reach) | (index >= total + shape.reach)
            wave.masked_fill_(beyond[..., None], 0)
        waves = None if counts is None else counts * framing.hop
        wave = slots.behind(self._marks, rows, wave.flatten(1), waves)
        return self._marked(n, self._outward(self._before_out(wave, n.out, columns)), columns)

    # The stream's samples.

    def _cells(self, n: Numbers, place: Tensor) -> Tensor:
        """Of the ring, by samples' positions [B, m]."""
        return (place % self._ring).add_(n.slot[:, None] * (self._ring + 1))

    def _hear(self, n: Numbers, samples: Tensor) -> None:
        """Put new samples [B, n] into the ring."""
        place = n.heard[:, None] + self._slots.upto(samples.shape[1])
        nowhere = n.slot[:, None] * (self._ring + 1) + self._ring
        cells = torch.where(place < n.received[:, None], self._cells(n, place), nowhere)
        self._slots.pool(self._audio).view(-1).index_put_((cells,), samples)

    def _heard(self, n: Numbers, first: Tensor, count: int) -> Tensor:
        """Samples from `first` on [B, count]; zeros before and after the stream."""
        place = first[:, None] + self._slots.upto(count)
        found = self._slots.pool(self._audio).view(-1).take(self._cells(n, place))
        return found.masked_fill_((place < 0) | (place >= n.received[:, None]), 0)

    def _marked(self, n: Numbers, marks: Tensor, columns: int) -> Tensor:
        """marks: [B, blocks * up] → as `run` returns it."""
        index = self._slots.upto(self._reach.most_known(columns))
        marks = marks.gather(1, n.place[:, None] + index)
        sound = (marks.isfinite() | (index >= n.given[:, None])).all(dim=1, keepdim=True)
        # Beyond `given` there may be anything.
        marks += self._slots.pool(self._audio).view(-1).take(self._cells(n, n.known[:, None] + index))
        return torch.cat([marks, sound.to(marks.dtype)], dim=1)

    def _out_length(self, columns: int) -> int:
        return self._outward.window(self._reach.blocks_out(columns))

    def _before_out(self, wave: Tensor, out: Tensor, columns: int) -> Tensor:
        """Of wave [B, n], which ends with the pass's columns, what the samples not known yet are made of."""
        kept = wave.shape[1] - columns * self._framing.hop
        place = (out + kept)[:, None] + self._slots.upto(self._out_length(columns))
        return wave.gather(1, place.clamp_(0, wave.shape[1] - 1))
