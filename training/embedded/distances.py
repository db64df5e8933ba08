"""How far one wave is from another: in loudness of bands, in phases, and in the texture of its noise."""

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

    Mel distances let phases be noise, and so make noise of harmonics; this asks the codes to carry them. High
    frequencies, whose phases no code can carry, count little, and from `top_hz` on nothing: asked for the phases of
    noise, a decoder answers with pulses.
    """

    SIZES, BINS, FRAMES = (512, 1024, 2048), 8, 4

    def __init__(self, knee_hz: float = 2000, top_hz: float = 3000):
        super().__init__()
        for n_fft in self.SIZES:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft))
            hz = torch.arange(n_fft // 2 // self.BINS) * self.BINS * 24000 / n_fft
            self.register_buffer(f"weight{n_fft}", ((hz < top_hz) / (1 + (hz / knee_hz) ** 2))[:, None])

    def patches(self, x: Tensor) -> Tensor:
        """[B, bins, frames] -> its sums over patches."""
        return F.avg_pool2d(x[:, None, :-1], (self.BINS, self.FRAMES))[:, 0]

    def forward(self, a: Tensor, b: Tensor, voiced: Tensor | None = None) -> Tensor:
        """a, b [B, 1, S]; voiced [B, labels]: 1 where there are phases to keep, evenly over the time, else 0."""
        total = []
        for n_fft in self.SIZES:
            window, weight = getattr(self, f"window{n_fft}"), getattr(self, f"weight{n_fft}")
            x, y = (
                compressed(torch.stft(v[:, 0], n_fft, n_fft // 4, window=window, return_complex=True)) for v in (a, b)
            )
            both, xx, yy = (self.patches(z) for z in ((x * y).sum(-1), x.square().sum(-1), y.square().sum(-1)))
            weight = weight * xx
            if voiced is not None:
                middles = (torch.arange(weight.shape[-1], device=a.device) + 0.5) / weight.shape[-1] * voiced.shape[1]
                weight = weight * voiced[:, None, middles.long()]
            total.append((weight * (1 - both * ((xx + 1e-3) * (yy + 1e-3)).rsqrt())).mean() / (weight.mean() + 1e-6))
        return torch.stack(total).mean()


class TextureDistance(nn.Module):
    """How unlike the grain of what lies above `low_hz` is: in patches of the spectrogram, the mean power and how evenly it
    is spread there: by its dips (arithmetic over geometric mean, in nats: 0 where it is even, 0.58 for bins of noise, more
    for pulses and for lines) and by its peaks (mean square over squared mean, in nats: 0 and 0.69).

    Noise has no phases to keep, and a mel distance is best answered by its median: by pulses closer than the shortest
    window, which ears hear as a buzz. Statistics of a patch can be right without a sample being right, as they are for
    another draw of the same noise (McDermott & Simoncelli 2011).
    """

    # n_fft, neighbouring bins taken together, then bins and frames of a patch. The first two see the envelope of the whole
    # band, in 0.7 and 1.3 ms; the last ones tell hiss from lines at multiples of the frame rate.
    GRAINS = ((16, 99, 1, 120), (32, 99, 1, 60), (64, 1, 6, 30), (256, 1, 16, 8), (1024, 1, 64, 4), (2048, 1, 128, 2))
    FLOOR, AUDIBLE = 3e-8, 4e-6  # power a sample
    PERIODS = (120, 480)  # samples: of the decoder's steps of 20 ms, at whose multiples its pulses stand

    def __init__(self, low_hz: float = 3000):
        super().__init__()
        self.low_hz = low_hz
        for n_fft in {grain[0] for grain in self.GRAINS}:
            self.register_buffer(f"window{n_fft}", torch.hann_window(n_fft))

    def statistics(self, audio: Tensor, n_fft: int, together: int, bins: int, frames: int) -> tuple[Tensor, ...]:
        """audio [B, S] -> log of the mean power, dips and peaks, [B, bands, times] each."""
        window = getattr(self, f"window{n_fft}")
        z = torch.stft(audio, n_fft, n_fft // 4, window=window, return_complex=True)
        low = round(self.low_hz * n_fft / 24000)
        power = (z.real**2 + z.imag**2)[:, low:-1] / (0.375 * n_fft)  # a sample's, were all bins alike
        if together > 1:
            power = power.mean(1, keepdim=True)
        power = power[:, None] + self.FLOOR
        level, square, log = (F.avg_pool2d(x, (bins, frames))[:, 0] for x in (power, power**2, power.log()))
        level = level.log()
        return level, level - log, square.log() - 2 * level

    def profiles(self, audio: Tensor, weight: Tensor) -> list[Tensor]:
        """audio [B, S], weight [B, S / 4] -> how the band's power is spread over each period, 1 on average: [B, positions].
        Noise knows nothing of the decoder's steps, so its profile is flat."""
        z = torch.stft(audio, 16, 4, window=self.window16, return_complex=True)
        power = (z.real**2 + z.imag**2)[:, round(self.low_hz * 16 / 24000) : -1, :-1].mean(1) / 6 + self.FLOOR
        power = power.unflatten(1, (-1, 120))
        even = (power / power.mean(-1, keepdim=True)).flatten(1)  # every 20 ms as loud
        folded = []
        for period in self.PERIODS:
            x, w = ((weight * even).unflatten(1, (-1, period // 4)), weight.unflatten(1, (-1, period // 4)))
            folded.append((x.sum(1) + 1) / (w.sum(1) + 1))
        return folded

    def forward(self, a: Tensor, b: Tensor, hiss: Tensor | None = None) -> Tensor:
        """a, b [B, 1, S]; patches count by how audible they are in a. hiss [B, labels]: 1 where there is only noise, evenly
        over the time: there, power must not follow the decoder's steps more than it does in a."""
        total = []
        if hiss is not None:
            weight = hiss.repeat_interleave(a.shape[-1] // 4 // hiss.shape[1], 1)
            profiles = (self.profiles(x[:, 0], weight) for x in (a, b))
            total += [4 * (x - y).abs().mean() for x, y in zip(*profiles, strict=True)]
        for grain in self.GRAINS:
            taught, own = (self.statistics(x[:, 0], *grain) for x in (a, b))
            power = taught[0].exp()
            weight = power / (power + self.AUDIBLE)
            level, dips, peaks = ((x - y).abs() for x, y in zip(taught, own, strict=True))
            apart = 0.5 * level + 0.7 * dips + 0.7 * peaks
            total.append((weight * apart).mean() / (weight.mean() + 1e-6))
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
