"""The short-time Fourier transform of many streams at once, and back, as the stock does it of a whole clip.

The stock pads a clip with zeros to more than a multiple of N_FFT, mirrors both ends, and divides
the overlap-added frames by the summed squared window (silentcipher/stft.py: torch.stft, torch.istft).
Its STFT object is one per process with the last clip's length inside; here each stream has its own row.
Column t is centred on sample t * hop; hop is half of N_FFT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.watermark.resampler import Whole
from services.watermark.slots import Slots


class Framing:
    """Window and sizes; never changed."""

    def __init__(self, n_fft: int, hop_length: int, device: torch.device | str = "cpu"):
        self.n_fft, self.hop, self.half = n_fft, hop_length, n_fft // 2
        self.window = torch.hann_window(n_fft, device=device)  # [N]
        self.window_energy = float(self.window.double().square().sum())
        squared = self.window.square()
        self._weight = squared[:hop_length] + squared[hop_length:]

    def padded(self, samples: Whole) -> Whole:
        """Length of a clip of so many samples with its zeros."""
        return (samples // self.n_fft + 1) * self.n_fft

    def columns(self, samples: Whole) -> Whole:
        """All columns of a clip of so many samples."""
        return self.padded(samples) // self.hop + 1

    def known(self, samples: Whole) -> Whole:
        """Columns that `samples` samples complete when more follow; the first one needs its mirror image."""
        return samples // self.hop * (samples > self.half)

    def begin(self, column: Whole) -> Whole:
        """The first position under a column's window."""
        return column * self.hop - self.half

    def mirror(self, samples: Whole) -> Whole:
        """A clip's position p behind its zeros is as position mirror - p."""
        return 2 * self.padded(samples) - 2

    def span(self, count: int) -> int:
        """Length of neighbouring columns."""
        return (count - 1) * self.hop + self.n_fft

    def analyse(
        self, samples: Tensor, start: Tensor, begin: Tensor, end: Tensor, mirror: Tensor, upto: Tensor
    ) -> Tensor:
        """Neighbouring columns, k of each clip, the first one of which begins at `begin`: complex [B, k, F].

        samples: [B, n], from position `start` on, as far as the columns reach and one more before.
        start, begin, end, mirror: [B]. end: the clip's length, far off while it is not known, as mirror.
        upto: 0, 1, … [span(k)].
        """
        place = (begin[:, None] + upto).abs_()
        place = torch.minimum(place, mirror[:, None] - place)
        found = samples.gather(1, (place - start[:, None]).clamp_(0, samples.shape[1] - 1))
        found.masked_fill_(place >= end[:, None], 0)
        return torch.fft.rfft(found.unfold(1, self.n_fft, self.hop) * self.window)


class Synthesis:
    """Complex columns in, samples out."""

    def __init__(self, framing: Framing, slots: Slots):
        self._framing, self._slots = framing, slots
        self._late = slots.add(1, framing.hop)  # the last frame's second half, over which the next one lies

    def step(self, rows: Tensor, columns: Tensor, counts: Tensor | None = None) -> Tensor:
        """columns [B, k, bins], zero above `bins` → for each the hop of samples before its centre [B, k, hop].

        counts: as Slots.behind has it.
        """
        framing = self._framing
        frames = torch.fft.irfft(columns, n=framing.n_fft) * framing.window  # [B, k, N]
        early, late = frames.split(framing.hop, dim=2)
        before = self._slots.behind(self._late, rows, late, counts)[:, :-1]
        return (before + early) / framing._weight
