"""How far one wave is from another: in loudness of bands, and in phases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from discriminator import compressed
from torch import Tensor, nn


class MelDistance(nn.Module):
    """Mean L1 distance of natural-log mel spectra over four resolutions."""

    SCALES = ((256, 32), (512, 64), (1024, 80), (2048, 128))

    def __init__(self):
        super().__init__()
        for n_fft, mels in self.SCALES:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft))
            self.register_buffer(f"bank{n_fft}", mel_bank(n_fft, mels))

    def mel(self, audio: Tensor, n_fft: int, window: Tensor, bank: Tensor) -> Tensor:
        z = torch.stft(audio, n_fft, n_fft // 4, window=window, return_complex=True)
        power = z.real**2 + z.imag**2 + 1e-9
        return (bank @ power.sqrt()).clamp(min=2e-3).log()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b [B, 1, S]."""
        total = []
        for n_fft, _ in self.SCALES:
            window, bank = getattr(self, f"window{n_fft}"), getattr(self, f"bank{n_fft}")
            x, y = (self.mel(audio[:, 0], n_fft, window, bank) for audio in (a, b))
            total.append((x - y).abs().mean())
        return torch.stack(total).mean()


class PhaseDistance(nn.Module):
    """How unlike the phases are: 1 - correlation of complex spectra in patches of 8 bins by 4 frames, magnitudes
    raised to the power 0.3. 0 equal, 1 for phases at random; blind to loudness, so silence is no way out.

    Mel distances let phases be noise, and so make noise of harmonics; this asks the codes to carry them.
    High frequencies, whose phases no code can carry, count little.
    """

    SIZES, BINS, FRAMES = (512, 1024, 2048), 8, 4

    def __init__(self, knee_hz: float = 2000):
        super().__init__()
        for n_fft in self.SIZES:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft))
            hz = torch.arange(n_fft // 2 // self.BINS) * self.BINS * 24000 / n_fft
            self.register_buffer(f"weight{n_fft}", 1 / (1 + (hz / knee_hz) ** 2)[:, None])

    def patches(self, x: Tensor) -> Tensor:
        """[B, bins, frames] -> its sums over patches."""
        return F.avg_pool2d(x[:, None, :-1], (self.BINS, self.FRAMES))[:, 0]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b [B, 1, S]."""
        total = []
        for n_fft in self.SIZES:
            window, weight = getattr(self, f"window{n_fft}"), getattr(self, f"weight{n_fft}")
            x, y = (
                compressed(torch.stft(v[:, 0], n_fft, n_fft // 4, window=window, return_complex=True)) for v in (a, b)
            )
            both, xx, yy = (self.patches(z) for z in ((x * y).sum(-1), x.square().sum(-1), y.square().sum(-1)))
            weight = weight * xx
            total.append((weight * (1 - both * ((xx + 1e-3) * (yy + 1e-3)).rsqrt())).mean() / weight.mean())
        return torch.stack(total).mean()


def mel_bank(n_fft: int, mels: int, rate_hz: int = 24000) -> Tensor:
    """Triangular filters [mels, n_fft / 2 + 1], HTK scale."""
    top = 2595 * torch.log10(torch.tensor(1 + rate_hz / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), mels + 2) / 2595) - 1)
    bins = torch.linspace(0, rate_hz / 2, n_fft // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rise, fall).clamp(min=0)
    return bank / bank.sum(1, keepdim=True).clamp(min=0.25)
