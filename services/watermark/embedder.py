"""Mark audio as it streams by: as many samples out as in, late by a fixed look-ahead.

A stream is resampled to the model's rate, cut into STFT columns, and each column's mark (a
magnitude to take away, bin by bin) is computed from the columns around it. The mark alone is
transformed back, resampled to the stream's rate and added to the untouched input, so that the
audio itself never goes through a resampler. What a stream gives does not depend on how it was cut,
nor on which streams it was marked with. All of it is done for many streams in one pass, where the
nets lie, on state in pools (slots.py); the host copies samples in and marks out (stream.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER
from services.watermark.kernels import PRECISIONS
from services.watermark.key import check_key, key_symbols
from services.watermark.level import FixedLevel, Level
from services.watermark.marker import Marker
from services.watermark.reach import Reach
from services.watermark.resampler import Bank, Kernel
from services.watermark.slots import Slots
from services.watermark.spectrum import Framing, Synthesis
from services.watermark.stream import FAR, EmbedStream, Span
from services.watermark.weights import Nets

# Columns so far below the level are left as they are. A mark there would take all that is in its
# bins, whatever the strength, and holes in the faint noise of pauses are most of what DNSMOS hears
# of a mark. Embedded bundle, 40 clips each, loss of OVRL / clips in which the stock decoder, which
# forgives no symbol, spells the key: marked everywhere 0.061 / 40; down to 35 dB below the level
# 0.045 / 39; to 30 dB 0.024 / 38. (130 clips: 0.033 at 35 dB, 0.022 at 30 dB.)
_SILENCE_DB = 35.0
_SIZES = (32, 16, 8, 4, 2, 1)  # columns that each stream of a pass brings
_MOST_COLUMNS = 512  # of one pass, all streams together: what the nets hold at once is bounded
# Streams that passes on a GPU are filled up to, since its libraries plan each new shape anew.
_STREAMS = sorted({1, *(base << bit for bit in range(9) for base in (2, 3) if base << bit <= _MOST_COLUMNS)})


class Embedder:
    """Marks any number of streams with one key."""

    def __init__(
        self,
        nets: Nets,
        key: bytes,
        *,
        sample_rate_hz: int = 24000,
        message_sdr_db: float | None = None,
        level: Level | None = None,
        slots: int = 1,
        fill: bool | None = None,
        precision: str | None = None,
    ):
        """
        key: what to write, exactly `nets.hparams.key_bytes` bytes.
        sample_rate_hz: rate of the streams, whatever the model's.
        message_sdr_db: how far the mark's power lies below the level's, before what cannot be taken
            from quiet bins is left out; default the model's own.
        level: default FixedLevel().
        slots: how many streams to have room for from the start.
        fill: whether passes are filled up to few sizes; None: on CUDA.
        precision: of the nets' products, one of kernels.PRECISIONS; default: fp32 on the CPU, tf32 on CUDA, whose
            cuDNN has one switch between these two for the whole process, which this sets.

        Raises: ValueError when key, SDR or precision is out of bounds.
        """
        shape = nets.hparams
        sdr_db = shape.message_sdr_db if message_sdr_db is None else message_sdr_db
        if not 0 <= sdr_db <= 100:
            raise ValueError(f"message_sdr_db is {sdr_db}, must be between 0 and 100")
        self.hparams = shape
        self.sample_rate_hz = sample_rate_hz
        self.device = next(nets.enc_c.parameters()).device
        self.precision = precision or ("tf32" if self.device.type == "cuda" else "fp32")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
        if self.device.type == "cuda" and self.precision != "fp16":
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        self._fill = self.device.type == "cuda" if fill is None else fill
        self._level = level or FixedLevel()
        self._framing = Framing(shape.n_fft, shape.hop_length, self.device)
        kernels = (Kernel(sample_rate_hz, shape.sample_rate_hz), Kernel(shape.sample_rate_hz, sample_rate_hz))
        self._inward, self._outward = banks = tuple(Bank(kernel, self.device) for kernel in kernels)
        self.reach = Reach(shape, self._framing, kernels, banks)
        self._symbols = torch.tensor(key_symbols(check_key(key, shape.key_bytes)), device=self.device)
        self._strength = 10 ** (-sdr_db / 20)
        with torch.inference_mode():
            self.slots = Slots(slots + 1, self.device)
            self._spare = self.slots.take(1)[0]  # of rows that fill up a pass
            self._marker = Marker(nets, self.slots, self.precision)
            self._synthesis = Synthesis(self._framing, self.slots)
            self._power = self.slots.add(dtype=torch.float64)  # of all columns so far
            # Columns whose mark is not known yet: their spectrum in the band, and the mark's scale.
            self._spectra = self.slots.add(shape.reach, shape.message_band_size, dtype=torch.complex64)
            self._scales = self.slots.add(shape.reach)
            # The mark at the model's rate, as far back as the next output's block may reach.
            self._marks = self.slots.add(2 * self._outward.half + self._outward.down)

    @property
    def lookahead_samples(self) -> int:
        """Most samples that a stream holds back: one comes out at the latest when so many follow it.

        A sample lies in columns up to N_FFT ahead, each depends on `reach` further columns, and the
        two resamplers reach half a filter ahead.
        """
        shape = self.hparams
        columns = shape.n_fft + shape.reach * shape.hop_length
        ahead = (columns + self._outward.half) * self.sample_rate_hz / shape.sample_rate_hz + self._inward.half
        return math.ceil(ahead)

    def open(self) -> EmbedStream:
        """A new stream."""
        return EmbedStream(self)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Have the device plan every size of pass, for which the first streams would otherwise wait."""
        if not self._fill:
            return
        with self.slots.in_use(), _on(self.device):
            for size in _SIZES:
                for count in (count for count in _STREAMS if count * size <= _MOST_COLUMNS):
                    self._begin([], size, count)
            if self.device.type == "cuda":
                torch.cuda.synchronize()

    def embed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """A whole clip [n] → marked [n]."""
        stream = self.open()
        return np.concatenate([stream.push(samples), stream.finish()])

    @torch.inference_mode()
    def advance(
        self, pieces: Sequence[tuple[EmbedStream, NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | Exception]:
        """Advance different streams of this embedder together.

        pieces: stream and its next samples [n], None to finish it.
        Returns: for each what `push` or `finish` returns or raises; a stream that fails fails alone.
        """
        results: list[NDArray[np.float32] | Exception] = [np.zeros(0, np.float32)] * len(pieces)
        taken: list[int] = []
        for index, (stream, samples) in enumerate(pieces):
            try:
                stream.take(samples)
            except ValueError as error:
                results[index] = error
                continue
            if stream.due:
                taken.append(index)
        streams = [pieces[index][0] for index in taken]
        fresh = [stream for stream in streams if stream.slot is None]
        for stream, slot in zip(fresh, self.slots.take(len(fresh)), strict=True):
            stream.slot = slot
        with self.slots.in_use(), _on(self.device):
            if fresh:
                self.slots.clear([stream.slot for stream in fresh])
            self._mark(streams)
        for index in taken:
            try:
                results[index] = pieces[index][0].give()
            except RuntimeError as error:
                results[index] = error
        return results

    def _mark(self, streams: list[EmbedStream]) -> None:
        """Compute all columns that are due: those of several streams together, then wait for them once."""
        begun: list[tuple[list[EmbedStream], list[Span], Tensor]] = []
        for size in _SIZES:
            most = _MOST_COLUMNS // size
            while due := [stream for stream in streams if stream.due >= size]:
                for start in range(0, len(due), most):
                    begun.append(self._begin(due[start : start + most], size))
        if self.device.type == "cuda":
            done = torch.cuda.Event(blocking=True)  # the thread sleeps until then, and others of Python's run
            done.record()
            done.synchronize()
        for members, spans, marks in begun:
            for stream, span, row in zip(members, spans, marks.numpy(), strict=False):  # what fills up comes last
                if span.stop > span.start:
                    stream.add(row[span.start : span.stop])

    def _begin(
        self, streams: list[EmbedStream], columns: int, count: int | None = None
    ) -> tuple[list[EmbedStream], list[Span], Tensor]:
        """One pass of `count` rows, not waited for: who takes part, where in its row each one's mark
        lies, and the rows [count, n]."""
        reach, is_cuda = self.hparams.reach, self.device.type == "cuda"
        if count is None:
            count = next(size for size in _STREAMS if size >= len(streams)) if self._fill else len(streams)
        numbers = torch.empty(3, count, dtype=torch.int64, pin_memory=is_cuda)
        samples = torch.empty(count, self.reach.window(columns), pin_memory=is_cuda)
        host, rows = numbers.numpy(), samples.numpy()
        host[:, len(streams) :] = [[self._spare], [reach + 1], [FAR]]
        rows[len(streams) :] = 0
        for row, stream in enumerate(streams):
            host[:, row] = stream.slot, stream.column, stream.end
            stream.window(rows[row])
        inside = bool(streams) and all(  # warm_up's passes do all there is to do
            stream.column > reach and stream.column + columns <= self._framing.columns(stream.end) for stream in streams
        )
        spans = [stream.advance(columns) for stream in streams]
        marks = self._pass(
            numbers.to(self.device, non_blocking=True), samples.to(self.device, non_blocking=True), columns, inside
        )
        if is_cuda:
            marks = torch.empty(marks.shape, pin_memory=True).copy_(marks, non_blocking=True)
        return streams, spans, marks

    def _pass(self, numbers: Tensor, samples: Tensor, count: int, inside: bool) -> Tensor:
        """Advance streams by `count` columns each, without waiting for the device.

        numbers: slot, next column and end of each [3, B]. samples: their windows [B, reach.window(count)].
        inside: no column, with those that the nets are behind, lies before or after its stream.
        Returns: the mark of samples from the block on in which the first unknown one lies [B, n].
        """
        shape, framing, slots, device = self.hparams, self._framing, self.slots, self.device
        rows, first, end = numbers.unbind(0)
        index = first[:, None] + torch.arange(count, device=device)  # [B, k]
        total = framing.columns(end)[:, None]

        def valid(behind: Tensor) -> Tensor:  # [n, 1, 1] → [n, B, k]
            return (index >= behind) & (index < total + behind)

        begin = self.reach.first_block(first) * self._inward.up
        columns = framing.analyse(self._inward(samples), begin, first, end, count)  # [B, k, F]
        energy = columns.abs().square().mean(dim=2)  # [B, k]
        power = energy / framing.window_energy
        before = slots.read(self._power, rows)
        level = self._level.step(power, before, first, shape.sample_rate_hz / shape.hop_length)
        slots.write(self._power, rows, before + power.double().sum(dim=1))
        gain = torch.sqrt(TRAINING_POWER / level)  # what brings the stream to the training level
        if shape.frame_level_normalization:
            carrier_rms = torch.sqrt(energy)
        elif shape.utterance_level_normalization:
            # Carrier cells of audio of power P have the mean square P * sum(window ** 2) (Parseval).
            carrier_rms = torch.sqrt(level * framing.window_energy)
        else:
            carrier_rms = 1 / gain
        audible = power > level * 10 ** (-_SILENCE_DB / 10)
        scale = slots.behind(self._scales, rows, carrier_rms * self._strength * audible)[:, :count, None]
        spectrum = slots.behind(self._spectra, rows, columns[..., : shape.message_band_size])[:, :count]
        carrier = columns[..., : shape.rows].abs() * gain[..., None]
        symbols = self._symbols[index % shape.message_len]
        mark = self._marker.step(rows, carrier, symbols, None if inside else valid)  # of columns `reach` before
        # The stock leaves relu(magnitude - mark) at the old phase: a cell loses at most all it has.
        magnitude = spectrum.abs()
        loss = torch.minimum(mark * scale, magnitude)
        taken = -spectrum * (loss / magnitude.clamp_min(1e-30))
        wave = self._synthesis.step(rows, taken)  # [B, k, hop]
        if not inside:  # what lies before the first column's centre, and behind the last one's, is not the stream's
            kept = (index > shape.reach) & (index < total + shape.reach)
            wave = torch.where(kept[..., None], wave, 0.0)
        wave = slots.behind(self._marks, rows, wave.flatten(1))
        return self._outward(self._outward_window(wave, first, count))

    def _outward_window(self, wave: Tensor, first: Tensor, count: int) -> Tensor:
        """Of wave [B, n], which ends `reach` columns behind, what the outputs not known yet are made of."""
        bank, hop = self._outward, self.hparams.hop_length
        ended = (first - self.hparams.reach - 1) * hop  # where this pass's part of it begins, at the model's rate
        known = self.reach.outward.outputs((ended - bank.half).clamp_min(0))
        start = known // bank.up * bank.down - bank.lead - (ended - (wave.shape[1] - count * hop))
        place = start[:, None] + torch.arange(bank.window(self.reach.blocks_out(count)), device=wave.device)
        return wave.gather(1, place.clamp(0, wave.shape[1] - 1))


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    """A thread of the pool may have another device current, on whose stream kernels would be launched."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
