"""What one pass computes: new samples of some streams in, their marked samples out, on state in slots.

Tensors in, tensors out, without synchronising with the device, so that a pass can be captured (graphs.py). The
planner computes each stream's position and the integers that follow from it on the host (planner.py); they
travel with the samples in one buffer and one copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.watermark.hparams import Hparams
from services.watermark.kernels.signal_plain import Loudness
from services.watermark.level import Level
from services.watermark.marker import Marker
from services.watermark.planner import PassControl
from services.watermark.receptive_field import ReceptiveField
from services.watermark.resampler import FilterBank
from services.watermark.spectrum import Framing
from services.watermark.state_pool import StatePool


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
        self._marker = marker
        self._symbols, self._ring_size = symbols, history_samples
        self._loudness = Loudness(level, shape, framing.window_energy, columns_per_second, strength)
        # The sample ring: sample p lies at p mod ring size. One more cell takes writes of padding.
        self._ring = state.add_tensor(history_samples + 1)
        self._power_sum = state.add_tensor(dtype=torch.float64)  # over all columns so far
        # Columns whose mark is not computed yet: their spectrum in the band, and the mark's scale.
        self._spectra = state.add_tensor(shape.context_columns, shape.message_band_size, dtype=torch.complex64)
        self._scales = state.add_tensor(shape.context_columns)
        self._overlap = state.add_tensor(1, framing.hop)  # the last frame's second half, which the next overlaps
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
        shape, framing, state, signal = self._shape, self._framing, self._state, self._marker.signal
        c = PassControl[Tensor](*control.unbind(0))
        rows, counts = c.slot, c.column_count if mixed else None
        offsets = state.arange(columns)
        index, total = c.first_column[:, None] + offsets, c.total_columns[:, None]  # [B, k]

        def valid(lag: Tensor) -> Tensor:  # [n, 1, 1] → [n, B, k]
            column = index - lag
            return (column >= 0) & (column < total)

        ring = state.tensor(self._ring)
        signal.write_ring(ring, rows, c.consumed, c.available, samples)
        window = signal.read_ring(ring, rows, c.window_start, c.available, self._field.window_length(columns))
        begin = c.first_column * framing.hop - framing.half
        frames = signal.frames(
            self._inward(window), c.window_position, begin, c.length, c.mirror, framing.window, columns
        )
        spectra = torch.fft.rfft(frames)  # [B, k, F]
        energy = signal.energies(spectra)  # [B, k]
        gain, scales, power_sum = signal.levels(
            energy,
            self._loudness,
            state.tensor(self._power_sum),
            state.tensor(self._scales),
            rows,
            c.first_column,
            counts,
        )
        carrier = signal.carriers(spectra, gain, shape.rows)
        symbols = self._symbols[index % shape.message_len]
        # The mark of the columns `context_columns` before these:
        mark = self._marker.step(rows, carrier, symbols, None if interior else valid, counts)
        taken = signal.taken(mark, scales, spectra, state.tensor(self._spectra), rows, counts)
        inside = None
        if not interior:  # before the first column's centre and after the last one's there is no stream
            inside = (index > shape.context_columns) & (index < total + shape.context_columns)
        wave = signal.waves(
            torch.fft.irfft(taken, n=framing.n_fft),  # the missing upper bins are zero
            framing.window, state.tensor(self._overlap), state.tensor(self._mark_history), rows, inside, counts,
        )  # fmt: skip
        marks = self._outward(self._output_window(wave, c.output_offset, columns))  # [B, blocks * up]
        length = self._field.max_marked_samples(columns)
        return signal.add_marks(ring, rows, c.emitted, marks, c.output_index, c.emit_count, power_sum, length)

    def restore(self, slot: int, first_sample: int, samples: Tensor, power_sum: float) -> None:
        """The state of a stream that begins at a checkpoint: its first samples [n], and the power of earlier columns."""
        cells = (first_sample + torch.arange(len(samples))) % self._ring_size
        ring = self._state.tensor(self._ring)
        ring[slot, cells.to(ring.device)] = samples.to(ring.device)
        self._state.tensor(self._power_sum)[slot] = power_sum

    def _output_length(self, columns: int) -> int:
        return self._outward.input_length(self._field.output_blocks(columns))

    def _output_window(self, wave: Tensor, offset: Tensor, columns: int) -> Tensor:
        """The part of wave [B, n], which ends with the pass's columns, that the next output samples need."""
        history = wave.shape[1] - columns * self._framing.hop
        position = (offset + history)[:, None] + self._state.arange(self._output_length(columns))
        return wave.gather(1, position.clamp_(0, wave.shape[1] - 1))
