"""A small phoneme recogniser, which learns on the teacher's speech beside the codec and says what it hears of the codec's.

A mel distance weighs all bands and moments alike; which of them tell an s from an f, only a listener knows.
"""

from __future__ import annotations

import torch
from distances import mel_bank
from torch import Tensor, nn
from torch.nn import functional as F

N_FFT, HOP, MELS = 512, 240, 64
LABEL_SAMPLES = 960


class Listener(nn.Module):
    def __init__(self, kinds: int, width: int = 192):
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT))
        self.register_buffer("bank", mel_bank(N_FFT, MELS))
        sizes = ((MELS, 5, 1), (width, 5, 2), (width, 5, 1), (width, 5, 2), (width, 5, 1))
        self.layers = nn.ModuleList(
            nn.Conv1d(size, width, kernel, stride, kernel // 2) for size, kernel, stride in sizes
        )
        self.out = nn.Conv1d(width, kinds, 1)

    def forward(self, audio: Tensor, noisy: bool = False) -> tuple[Tensor, list[Tensor]]:
        """audio [B, 1, S], S a multiple of 960 -> logits [B, S / 960, kinds], features of the layers.

        noisy: for training: hiss at random levels, so that it relies on what is plain to hear.
        """
        audio = audio[:, 0]
        if noisy:
            audio = audio + torch.randn_like(audio) * 10 ** (-2 - 2 * torch.rand(len(audio), 1, device=audio.device))
        z = torch.stft(audio, N_FFT, HOP, window=self.window, return_complex=True)
        x = (self.bank @ (z.real**2 + z.imag**2 + 1e-9).sqrt()).clamp(min=2e-3).log()[..., :-1]
        x, features = (x + 2) / 2, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.out(x).transpose(1, 2), features
