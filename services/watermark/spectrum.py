"""The short-time Fourier transform of a stream, and back: column by column, as the stock does it whole.

The stock pads a clip with zeros to more than a multiple of N_FFT, mirrors both ends, and divides
the overlap-added frames by the summed squared window (silentcipher/stft.py: torch.stft, torch.istft).
Its STFT object is one per process with the last clip's length inside; here each stream has its own.
Column t is centred on sample t * hop; hop is half of N_FFT.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Framing:
    """Window and sizes; shared by all streams, never changed."""

    def __init__(self, n_fft: int, hop_length: int, device: torch.device | str = "cpu"):
        self.n_fft, self.hop = n_fft, hop_length
        self.window = torch.hann_window(n_fft, device=device)  # [N]
        self.window_energy = float(self.window.double().square().sum())


class Analysis:
    """Samples in, complex columns out."""

    def __init__(self, framing: Framing):
        self._framing = framing
        self._pending = framing.window.new_zeros(0)
        self._received = 0
        self._mirrored = False

    def push(self, samples: Tensor, last: bool = False) -> Tensor:
        """samples [n] → the columns they complete [F, k]; with `last`, all the rest."""
        n_fft, hop = self._framing.n_fft, self._framing.hop
        half = n_fft // 2
        self._received += len(samples)
        pending = torch.cat([self._pending, samples])
        last = last and self._received > 0
        if last:
            pending = torch.nn.functional.pad(pending, (0, n_fft - self._received % n_fft))
        if not self._mirrored and len(pending) > half:
            pending = torch.cat([pending[1 : half + 1].flip(0), pending])
            self._mirrored = True
        if last:
            pending = torch.cat([pending, pending[-half - 1 : -1].flip(0)])
        count = max(0, (len(pending) - n_fft) // hop + 1) if self._mirrored else 0
        if not count:
            self._pending = pending
            return torch.zeros(half + 1, 0, dtype=torch.complex64, device=pending.device)
        frames = pending.unfold(0, n_fft, hop) * self._framing.window  # [k, N]
        self._pending = pending[count * hop :].clone()
        return torch.fft.rfft(frames).T


class Synthesis:
    """Complex columns in, samples out."""

    def __init__(self, framing: Framing):
        self._framing = framing
        squared = framing.window.square()
        self._weight = squared[: framing.hop] + squared[framing.hop :]
        self._half: Tensor | None = None  # the last frame's second half, over which the next frame lies

    def push(self, columns: Tensor) -> Tensor:
        """columns [rows, k], zero above `rows` → the samples [n] that no later column changes."""
        if not columns.shape[1]:
            return self._weight[:0]
        framing = self._framing
        frames = torch.fft.irfft(columns.T, n=framing.n_fft) * framing.window  # [k, N]
        early, late = frames.split(framing.hop, dim=1)
        if self._half is None:  # the first frame's first half lies before the stream
            early, before = early[1:], late[:-1]
        else:
            before = torch.cat([self._half[None], late[:-1]])
        self._half = late[-1].clone()
        return ((before + early) / self._weight).reshape(-1)
