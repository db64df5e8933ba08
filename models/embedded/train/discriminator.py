"""Multi-scale STFT discriminator after EnCodec (Défossez et al. 2022), small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm


class Scale(nn.Module):
    def __init__(self, n_fft: int, width: int):
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        layers = [nn.Conv2d(2, width, (3, 9), padding=(1, 4))]
        layers += [
            nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4)) for d in (1, 2, 4)
        ]
        layers += [nn.Conv2d(width, width, (3, 3), padding=(1, 1)), nn.Conv2d(width, 1, (3, 3), padding=(1, 1))]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio [B, S] -> judgement, feature maps."""
        z = torch.stft(audio.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        x = torch.view_as_real(z).permute(0, 3, 2, 1) / self.n_fft**0.5 * 4  # [B, 2, frames, bins]
        x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers[:-1]:
            x = leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features


class Discriminator(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (2048, 1024, 512, 256), width: int = 24):
        super().__init__()
        self.scales = nn.ModuleList(Scale(size, width) for size in sizes)

    def forward(self, audio: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [scale(audio[:, 0]) for scale in self.scales]


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
