"""The short-time Fourier transform of many streams at once and its inverse, equal to the stock's of a whole clip.

The stock pads a clip with zeros to the next larger multiple of N_FFT, mirrors both ends, and divides
the overlap-added frames by the summed squared window (silentcipher/stft.py: torch.stft, torch.istft).
Its STFT object is a singleton that keeps the last clip's length; here each stream has its own row.
Column t is centred on sample t * hop; hop is half of N_FFT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.runtime.polyphase import IntOrArray
from services.watermark.state_pool import StatePool


class Framing:
    """Window and sizes; immutable."""

    def __init__(self, n_fft: int, hop_length: int, device: torch.device | str = "cpu"):
        self.n_fft, self.hop, self.half = n_fft, hop_length, n_fft // 2
        self.window = torch.hann_window(n_fft, device=device)  # [N]
        self.window_energy = float(self.window.double().square().sum())
        squared = self.window.square()
        self.overlap_weight = squared[:hop_length] + squared[hop_length:]

    def padded(self, samples: IntOrArray) -> IntOrArray:
        """Length of a clip of `samples` samples with its padding."""
        return (samples // self.n_fft + 1) * self.n_fft

    def columns(self, samples: IntOrArray) -> IntOrArray:
        """All columns of a clip of `samples` samples."""
        return self.padded(samples) // self.hop + 1

    def complete_columns(self, samples: IntOrArray) -> IntOrArray:
        """Columns that the first `samples` samples complete when more follow; the first needs its mirror image."""
        return samples // self.hop * (samples > self.half)

    def mirror(self, samples: IntOrArray) -> IntOrArray:
        """Position p beyond the padded end reads position mirror - p."""
        return 2 * self.padded(samples) - 2

    def span(self, count: int) -> int:
        """Samples under `count` neighbouring columns."""
        return (count - 1) * self.hop + self.n_fft

    def analyse(
        self, samples: Tensor, start: Tensor, begin: Tensor, length: Tensor, mirror: Tensor, arange: Tensor
    ) -> Tensor:
        """k neighbouring columns of each clip, the first of which begins at `begin`: complex [B, k, F].

        samples: [B, n], from position `start` on: all that the columns need and one sample before.
        start, begin, length, mirror: [B]. length: of the clip; while it is open, length and mirror are very large.
        arange: 0, 1, … [span(k)].
        """
        position = (begin[:, None] + arange).abs_()
        position = torch.minimum(position, mirror[:, None] - position)
        framed = samples.gather(1, (position - start[:, None]).clamp_(0, samples.shape[1] - 1))
        framed.masked_fill_(position >= length[:, None], 0)
        return torch.fft.rfft(framed.unfold(1, self.n_fft, self.hop) * self.window)


class Synthesis:
    """Complex columns in, samples out."""

    def __init__(self, framing: Framing, state: StatePool):
        self._framing, self._state = framing, state
        self._overlap = state.add_tensor(1, framing.hop)  # the last frame's second half, which the next overlaps

    def step(self, rows: Tensor, columns: Tensor, counts: Tensor | None = None) -> Tensor:
        """columns [B, k, bins], the missing upper bins are zero → the hop of samples before each centre [B, k, hop].

        counts: see StatePool.append_history.
        """
        framing = self._framing
        frames = torch.fft.irfft(columns, n=framing.n_fft) * framing.window  # [B, k, N]
        early, late = frames.split(framing.hop, dim=2)
        before = self._state.append_history(self._overlap, rows, late, counts)[:, :-1]
        return (before + early) / framing.overlap_weight
