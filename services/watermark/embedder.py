"""Mark audio as it streams by: as many samples out as in, late by a fixed look-ahead.

A stream is resampled to the model's rate, cut into STFT columns, and each column's mark (a
magnitude to take away, bin by bin) is computed from the columns around it. The mark alone is
transformed back, resampled to the stream's rate and added to the untouched input, so that the
audio itself never goes through a resampler. What a stream gives does not depend on how it was cut,
nor on which streams it was marked with. The nets run where they lie, for many streams in one pass;
what is each stream's own (resamplers, transforms, level) is little work and stays on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER
from services.watermark.key import check_key, key_symbols
from services.watermark.level import FixedLevel, Level
from services.watermark.marker import Marker, MarkState
from services.watermark.resampler import Kernel, Resampler
from services.watermark.spectrum import Analysis, Framing, Synthesis
from services.watermark.weights import Nets

# Columns so far below the level are left as they are. A mark there would take all that is in its
# bins, whatever the strength, and holes in the faint noise of pauses are most of what DNSMOS hears
# of a mark. Embedded bundle, 40 clips each, loss of OVRL / clips in which the stock decoder, which
# forgives no symbol, spells the key: marked everywhere 0.061 / 40; down to 35 dB below the level
# 0.045 / 39; to 30 dB 0.024 / 38. (130 clips: 0.033 at 35 dB, 0.022 at 30 dB.)
_SILENCE_DB = 35.0


class Embedder:
    """Marks any number of streams with one key. Holds nothing of any stream; safe to share by threads."""

    def __init__(
        self,
        nets: Nets,
        key: bytes,
        *,
        sample_rate_hz: int = 24000,
        message_sdr_db: float | None = None,
        level: Level | None = None,
    ):
        """
        key: what to write, exactly `nets.hparams.key_bytes` bytes.
        sample_rate_hz: rate of the streams, whatever the model's.
        message_sdr_db: how far the mark's power lies below the level's, before what cannot be taken
            from quiet bins is left out; default the model's own.
        level: default FixedLevel().

        Raises: ValueError when key or SDR is out of bounds.
        """
        shape = nets.hparams
        sdr_db = shape.message_sdr_db if message_sdr_db is None else message_sdr_db
        if not 0 <= sdr_db <= 100:
            raise ValueError(f"message_sdr_db is {sdr_db}, must be between 0 and 100")
        self.hparams = shape
        self.sample_rate_hz = sample_rate_hz
        self.level = level or FixedLevel()
        self.marker = Marker(nets)
        self.framing = Framing(shape.n_fft, shape.hop_length)
        self.inward = Kernel(sample_rate_hz, shape.sample_rate_hz)
        self.outward = Kernel(shape.sample_rate_hz, sample_rate_hz)
        self.symbols = torch.tensor(key_symbols(check_key(key, shape.key_bytes)))
        self.strength = 10 ** (-sdr_db / 20)

    @property
    def lookahead_samples(self) -> int:
        """Most samples that a stream holds back: one comes out at the latest when so many follow it.

        A sample lies in columns up to N_FFT ahead, each depends on `reach` further columns, and the
        two resamplers reach half a filter ahead.
        """
        shape = self.hparams
        columns = shape.n_fft + shape.reach * shape.hop_length
        ahead = (columns + self.outward.half) * self.sample_rate_hz / shape.sample_rate_hz + self.inward.half
        return math.ceil(ahead)

    def open(self) -> EmbedStream:
        """A new stream."""
        return EmbedStream(self)

    def embed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """A whole clip [n] → marked [n]."""
        stream = self.open()
        return np.concatenate([stream.push(samples), stream.finish()])

    @torch.inference_mode()
    def advance(
        self, pieces: Sequence[tuple[EmbedStream, NDArray[np.float32] | None]]
    ) -> list[NDArray[np.float32] | Exception]:
        """Advance different streams of this embedder in one pass of the nets.

        pieces: stream and its next samples [n], None to finish it.
        Returns: for each what `push` or `finish` returns or raises; a stream that fails fails alone.
        """
        results: list[NDArray[np.float32] | Exception] = [np.zeros(0, np.float32)] * len(pieces)
        parts: dict[int, _Part] = {}
        for index, (stream, samples) in enumerate(pieces):
            try:
                part = stream.take(samples)
            except ValueError as error:
                results[index] = error
                continue
            if part.last or len(part.symbols):
                parts[index] = part
        marks = self.marker.step_each(list(parts.values()))
        for index, mark in zip(parts, marks, strict=True):
            try:
                results[index] = pieces[index][0].give(mark, parts[index].last)
            except RuntimeError as error:
                results[index] = error
        return results


@dataclass(frozen=True)
class _Part:
    """What one stream has for the nets: see Marker.step, without the leading dimension."""

    state: MarkState
    carrier: Tensor
    symbols: Tensor
    last: bool


class EmbedStream:
    """One stream's state. Not for several threads at once; dropping it frees everything."""

    def __init__(self, embedder: Embedder):
        self._embedder = embedder
        self._inward = Resampler(embedder.inward)
        self._analysis = Analysis(embedder.framing)
        self._level = embedder.level.open(embedder.hparams.sample_rate_hz / embedder.hparams.hop_length)
        self._marks = MarkState()
        self._synthesis = Synthesis(embedder.framing)
        self._outward = Resampler(embedder.outward)
        self._columns = 0  # so far; the message's phase
        # Columns whose mark is not known yet: spectrum in the band [band, w] and the mark's scale [w].
        self._spectrum = torch.zeros(embedder.hparams.message_band_size, 0, dtype=torch.complex64)
        self._scale = torch.zeros(0)
        self._clean = np.zeros(0, np.float32)  # input not given back yet
        self._finished = False

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take audio [n], n from 0 on, in [-1, 1]; give the marked audio [m] that is ready.

        Raises: ValueError when a sample is not finite, or the stream is over.
        """
        return self._alone(samples)

    def finish(self) -> NDArray[np.float32]:
        """The rest of the marked audio; the stream is over."""
        return self._alone(None)

    def _alone(self, samples: NDArray[np.float32] | None) -> NDArray[np.float32]:
        [result] = self._embedder.advance([(self, samples)])
        if isinstance(result, Exception):
            raise result
        return result

    # The two halves of a step, before and after the nets; for Embedder.advance.

    def take(self, samples: NDArray[np.float32] | None) -> _Part:
        """Audio [n], None at the end → the columns that it completes. Raises: ValueError as `push` does."""
        if self._finished:
            raise ValueError("the stream is finished")
        last = samples is None
        samples = np.zeros(0, np.float32) if samples is None else np.array(samples, np.float32)  # a copy
        if samples.ndim != 1:
            raise ValueError(f"samples have {samples.ndim} dimensions, must have 1")
        if not np.isfinite(samples).all():
            raise ValueError("samples must be finite, found NaN or infinity")
        embedder, shape = self._embedder, self._embedder.hparams
        self._finished = last
        self._clean = np.concatenate([self._clean, samples])
        columns = self._analysis.push(torch.from_numpy(self._inward.push(samples, last)), last)  # [F, k]
        energy = columns.abs().square().mean(dim=0)  # [k]
        power = self._level.step(energy / embedder.framing.window_energy)
        gain = torch.sqrt(TRAINING_POWER / power)  # what brings the stream to the training level
        if shape.frame_level_normalization:
            carrier_rms = torch.sqrt(energy)
        elif shape.utterance_level_normalization:
            # Carrier cells of audio of power P have the mean square P * sum(window ** 2) (Parseval).
            carrier_rms = torch.sqrt(power * embedder.framing.window_energy)
        else:
            carrier_rms = 1 / gain
        self._spectrum = torch.cat([self._spectrum, columns[: shape.message_band_size]], dim=1)
        audible = energy > power * (embedder.framing.window_energy * 10 ** (-_SILENCE_DB / 10))
        self._scale = torch.cat([self._scale, carrier_rms * embedder.strength * audible])
        place = torch.arange(self._columns, self._columns + columns.shape[1])
        self._columns += columns.shape[1]
        symbols = embedder.symbols[place % shape.message_len]
        return _Part(self._marks, columns[: shape.rows].abs() * gain, symbols, last)

    def give(self, mark: Tensor, last: bool) -> NDArray[np.float32]:
        """The mark's next columns [band, m] → the marked audio that is ready.

        Raises: RuntimeError when the mark is not finite.
        """
        known = mark.shape[1]
        spectrum, self._spectrum = self._spectrum[:, :known], self._spectrum[:, known:]
        scale, self._scale = self._scale[:known], self._scale[known:]
        # The stock leaves relu(magnitude - mark) at the old phase: a cell loses at most all it has.
        magnitude = spectrum.abs()
        loss = torch.minimum(mark * scale, magnitude)
        mark_samples = self._synthesis.push(-spectrum * (loss / magnitude.clamp_min(1e-30)))
        ready = self._outward.push(mark_samples.numpy(), last)[: len(self._clean)]
        if not np.isfinite(ready).all():
            raise RuntimeError("the nets gave a mark that is not finite: their weights are damaged")
        marked = self._clean[: len(ready)] + ready
        self._clean = self._clean[len(ready) :]
        return marked
