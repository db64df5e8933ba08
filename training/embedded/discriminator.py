"""Discriminators: spectra at several scales after EnCodec (Défossez et al. 2022), and the wave folded at several
periods after HiFi-GAN (Kong et al. 2020), which hears whether harmonics are in order. Both small."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm


def compressed(z: Tensor) -> Tensor:
    """Complex [...] -> real [..., 2] of magnitude |z|^0.3: what is faint counts too, as it does for an ear."""
    z = torch.view_as_real(z)
    return z * (z.square().sum(-1, keepdim=True) + 1e-2) ** -0.35


class Scale(nn.Module):
    def __init__(self, n_fft: int, width: int):
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        layers = [nn.Conv2d(2, width, (3, 9), stride=(1, 2), padding=(1, 4))]
        layers += [nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)) for d in (1, 2, 4)]
        layers += [nn.Conv2d(width, width, (3, 3), padding=(1, 1)), nn.Conv2d(width, 1, (3, 3), padding=(1, 1))]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio [B, S] -> judgement, feature maps."""
        z = torch.stft(audio.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        x = compressed(z).permute(0, 3, 2, 1)  # [B, 2, frames, bins]
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers[:-1]:
            x = leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features


class Period(nn.Module):
    def __init__(self, period: int, width: int):
        super().__init__()
        self.period = period
        sizes = (1, width, 4 * width, 8 * width, 8 * width)
        layers = [nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairwise(sizes)]
        layers += [
            nn.Conv2d(sizes[-1], sizes[-1], (5, 1), padding=(2, 0)),
            nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0)),
        ]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio [B, S] -> judgement, feature maps."""
        x = nn.functional.pad(audio, (0, -audio.shape[1] % self.period), mode="reflect")
        x = x.unflatten(1, (-1, self.period))[:, None].contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers[:-1]:
            x = leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.layers[-1](x), features


class Discriminator(nn.Module):
    def __init__(self, sizes: tuple[int, ...], periods: tuple[int, ...], width: int):
        super().__init__()
        self.parts = nn.ModuleList([*(Scale(size, width) for size in sizes), *(Period(n, 16) for n in periods)])

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        """audio [B, 1, S]."""
        return [part(audio[:, 0]) for part in self.parts]


def judge_loss(real: list, fake: list) -> Tensor:
    """Hinge loss of the discriminator."""
    losses = [torch.relu(1 - r).mean() + torch.relu(1 + f).mean() for (r, _), (f, _) in zip(real, fake, strict=True)]
    return torch.stack([loss.float() for loss in losses]).mean()


def fool_loss(real: list, fake: list) -> tuple[Tensor, Tensor]:
    """Hinge loss of the generator, and the distance between feature maps (relative, as in EnCodec)."""
    fool = torch.stack([-f.float().mean() for f, _ in fake]).mean()
    match = [
        (r.detach() - f).abs().float().mean() / (r.detach().abs().float().mean() + 1e-5)
        for (_, reals), (_, fakes) in zip(real, fake, strict=True)
        for r, f in zip(reals, fakes, strict=True)
    ]
    return fool, torch.stack(match).mean()
