"""What one pass computes: new samples of some streams in, their marked samples out, on state in slots.

Tensors in, tensors out, without synchronising with the device, so that a pass can be captured (graphs.py). The
planner computes each stream's position and the integers that follow from it on the host (planner.py); they
travel with the samples in one buffer and one copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER, Hparams
from services.watermark.level import Level
from services.watermark.marker import Marker
from services.watermark.planner import PassControl
from services.watermark.receptive_field import ReceptiveField
from services.watermark.resampler import FilterBank
from services.watermark.spectrum import Framing, Synthesis
from services.watermark.state_pool import StatePool

# Columns this far below the level are not marked. A mark there would take everything in its bins, whatever
# the strength, and holes in the faint noise of pauses are most of what DNSMOS hears of a mark. Bundled
# model, 40 clips each, loss of OVRL / clips in which the stock decoder, which forgives no symbol, spells the
# key: marked everywhere 0.061 / 40; down to 35 dB below the level 0.045 / 39; to 30 dB 0.024 / 38.
# (130 clips: 0.033 at 35 dB, 0.022 at 30 dB.)
_SILENCE_DB = 35.0


class PassInput:
    """Control values and samples [B, n] of a pass in one buffer."""

    def __init__(self, streams: int, buffer: Tensor):
        """buffer: float32, as `allocate` makes it."""
        self._streams, self.buffer = streams, buffer

    @classmethod
    def allocate(cls, streams: int, samples: int, *, pinned: bool = False) -> PassInput:
        """On the host, not initialised."""
        return cls(streams, torch.empty(streams * (2 * len(PassControl._fields) + samples), pin_memory=pinned))

    def to(self, device: torch.device) -> PassInput:
        """An asynchronous copy on the device."""
        return PassInput(self._streams, self.buffer.to(device, non_blocking=True))

    @property
    def control(self) -> Tensor:
        """[fields of PassControl, B] int64."""
        return self.buffer[: 2 * len(PassControl._fields) * self._streams].view(torch.int64).view(-1, self._streams)

    @property
    def samples(self) -> Tensor:
        """[B, n]."""
        return self.buffer[2 * len(PassControl._fields) * self._streams :].view(self._streams, -1)


class EmbedPass:
    """The computation of a pass, for one model and one key. Passes on the same slots must start in order."""

    def __init__(
        self,
        shape: Hparams,
        framing: Framing,
        field: ReceptiveField,
        banks: tuple[FilterBank, FilterBank],
        marker: Marker,
        state: StatePool,
        *,
        symbols: Tensor,
        strength: float,
        level: Level,
        columns_per_second: float,
        history_samples: int,
        max_columns: int,
    ):
        """
        symbols: the message, one symbol per column, repeated. strength: of the mark, as a share of the level.
        history_samples: size of each stream's sample ring, see ReceptiveField.history_samples.
        max_columns: of one pass.
        """
        self._shape, self._framing, self._field, self._state = shape, framing, field, state
        self._inward, self._outward = banks
        self._marker, self._synthesis = marker, Synthesis(framing, state)
        self._symbols, self._strength, self._level = symbols, strength, level
        self._columns_per_second, self._ring_size = columns_per_second, history_samples
        # The sample ring: sample p lies at p mod ring size. One more cell takes writes of padding.
        self._ring = state.add_tensor(history_samples + 1)
        self._power_sum = state.add_tensor(dtype=torch.float64)  # over all columns so far
        # Columns whose mark is not computed yet: their spectrum in the band, and the mark's scale.
        self._spectra = state.add_tensor(shape.context_columns, shape.message_band_size, dtype=torch.complex64)
        self._scales = state.add_tensor(shape.context_columns)
        # The mark at the model's rate, as far back as the next output block may read.
        self._mark_history = state.add_tensor(2 * self._outward.half + self._outward.down)
        lengths = (
            field.max_samples,
            field.window_length,
            framing.span,
            self._output_length,
            field.max_marked_samples,
        )
        state.reserve_arange(max(length(max_columns) for length in lengths))

    def run(
        self, control: Tensor, samples: Tensor, columns: int, *, mixed: bool = True, interior: bool = False
    ) -> Tensor:
        """One pass of `columns` columns.

        control: [fields of PassControl, B]. samples: new samples [B, n], of which available - consumed count.
        mixed: whether streams may bring fewer than `columns` columns.
        interior: no column, nor any that the nets lag behind, lies before or after its stream.
        Returns: [B, m + 3]: marked samples, of which emit_count count, 1 if those are finite, or 0, and the sum of the
        power over all columns so far, a float64 in the place of two numbers.
        """
        shape, framing, state = self._shape, self._framing, self._state
        c = PassControl[Tensor](*control.unbind(0))
        rows, counts = c.slot, c.column_count if mixed else None
        offsets = state.arange(columns)
        index, total = c.first_column[:, None] + offsets, c.total_columns[:, None]  # [B, k]

        def valid(lag: Tensor) -> Tensor:  # [n, 1, 1] → [n, B, k]
            column = index - lag
            return (column >= 0) & (column < total)

        self._write_ring(c, samples)
        window = self._read_ring(c, c.window_start, self._field.window_length(columns))
        spectra = framing.analyse(
            self._inward(window),
            c.window_position,
            c.first_column * framing.hop - framing.half,
            c.length,
            c.mirror,
            state.arange(framing.span(columns)),
        )
        energy = torch.view_as_real(spectra).square().sum(dim=3).mean(dim=2)  # [B, k]
        power = energy / framing.window_energy
        power_before = state.read(self._power_sum, rows)
        level = self._level.step(power, power_before, c.first_column, self._columns_per_second)
        own = power if counts is None else power.masked_fill(offsets >= counts[:, None], 0)
        power_sum = power_before + own.double().sum(dim=1)
        state.write(self._power_sum, rows, power_sum)
        gain = torch.sqrt(TRAINING_POWER / level)  # brings the stream to the training level
        if shape.frame_level_normalization:
            carrier_rms = torch.sqrt(energy)
        elif shape.utterance_level_normalization:
            # Carrier cells of audio of power P have the mean square P * sum(window ** 2) (Parseval).
            carrier_rms = torch.sqrt(level * framing.window_energy)
        else:
            carrier_rms = 1 / gain
        audible = power > level * 10 ** (-_SILENCE_DB / 10)
        scales = state.append_history(self._scales, rows, carrier_rms * self._strength * audible, counts)
        scale = scales[:, :columns, None]
        band = spectra[..., : shape.message_band_size]
        spectrum = state.append_history(self._spectra, rows, band, counts)[:, :columns]
        carrier = spectra[..., : shape.rows].abs() * gain[..., None]
        symbols = self._symbols[index % shape.message_len]
        # The mark of the columns `context_columns` before these:
        mark = self._marker.step(rows, carrier, symbols, None if interior else valid, counts)
        # The stock leaves relu(magnitude - mark) at the old phase: a cell loses at most all it has.
        magnitude = spectrum.abs()
        loss = torch.minimum(mark * scale, magnitude)
        taken = -spectrum * (loss / magnitude.clamp_min(1e-30))
        wave = self._synthesis.step(rows, taken, counts)  # [B, k, hop]
        if not interior:  # before the first column's centre and after the last one's there is no stream
            outside = (index <= shape.context_columns) | (index >= total + shape.context_columns)
            wave.masked_fill_(outside[..., None], 0)
        wave_counts = None if counts is None else counts * framing.hop
        wave = state.append_history(self._mark_history, rows, wave.flatten(1), wave_counts)
        marked = self._add_mark(c, self._outward(self._output_window(wave, c.output_offset, columns)), columns)
        return torch.cat([marked, power_sum[:, None].view(torch.float32)], dim=1)

    def restore(self, slot: int, first_sample: int, samples: Tensor, power_sum: float) -> None:
        """The state of a stream that begins at a checkpoint: its first samples [n], and the power of earlier columns."""
        cells = (first_sample + torch.arange(len(samples))) % self._ring_size
        ring = self._state.tensor(self._ring)
        ring[slot, cells.to(ring.device)] = samples.to(ring.device)
        self._state.tensor(self._power_sum)[slot] = power_sum

    # The sample ring.

    def _ring_cells(self, c: PassControl[Tensor], position: Tensor) -> Tensor:
        """Flat indices of samples' positions [B, m] in the ring tensor."""
        return (position % self._ring_size).add_(c.slot[:, None] * (self._ring_size + 1))

    def _write_ring(self, c: PassControl[Tensor], samples: Tensor) -> None:
        """Store new samples [B, n]."""
        position = c.consumed[:, None] + self._state.arange(samples.shape[1])
        padding_cell = c.slot[:, None] * (self._ring_size + 1) + self._ring_size
        cells = torch.where(position < c.available[:, None], self._ring_cells(c, position), padding_cell)
        self._state.tensor(self._ring).view(-1).index_put_((cells,), samples)

    def _read_ring(self, c: PassControl[Tensor], first: Tensor, count: int) -> Tensor:
        """Samples from `first` on [B, count]; zeros before and after the stream."""
        position = first[:, None] + self._state.arange(count)
        samples = self._state.tensor(self._ring).view(-1).take(self._ring_cells(c, position))
        return samples.masked_fill_((position < 0) | (position >= c.available[:, None]), 0)

    def _add_mark(self, c: PassControl[Tensor], marks: Tensor, columns: int) -> Tensor:
        """marks: [B, blocks * up] → [B, m + 1]: marked samples, and whether they are finite."""
        index = self._state.arange(self._field.max_marked_samples(columns))
        marks = marks.gather(1, c.output_index[:, None] + index)
        finite = (marks.isfinite() | (index >= c.emit_count[:, None])).all(dim=1, keepdim=True)
        # Samples beyond emit_count are undefined.
        cells = self._ring_cells(c, c.emitted[:, None] + index)
        marks += self._state.tensor(self._ring).view(-1).take(cells)
        return torch.cat([marks, finite.to(marks.dtype)], dim=1)

    def _output_length(self, columns: int) -> int:
        return self._outward.input_length(self._field.output_blocks(columns))

    def _output_window(self, wave: Tensor, offset: Tensor, columns: int) -> Tensor:
        """The part of wave [B, n], which ends with the pass's columns, that the next output samples need."""
        history = wave.shape[1] - columns * self._framing.hop
        position = (offset + history)[:, None] + self._state.arange(self._output_length(columns))
        return wave.gather(1, position.clamp_(0, wave.shape[1] - 1))
