"""The short-time Fourier transform of many streams at once, framed as the stock frames a whole clip.

The stock pads a clip with zeros to the next larger multiple of N_FFT, mirrors both ends, and divides
the overlap-added frames by the summed squared window (silentcipher/stft.py: torch.stft, torch.istft).
Its STFT object is a singleton that keeps the last clip's length; here each stream has its own row.
Column t is centred on sample t * hop; hop is half of N_FFT.
"""

from __future__ import annotations

import torch

from services.runtime.polyphase import IntOrArray


class Framing:
    """Window and sizes; immutable."""

    def __init__(self, n_fft: int, hop_length: int, device: torch.device | str = "cpu"):
        self.n_fft, self.hop, self.half = n_fft, hop_length, n_fft // 2
        self.window = torch.hann_window(n_fft, device=device)  # [N]
        self.window_energy = float(self.window.double().square().sum())

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
