"""A clip to frames of codes: Mimi's encoder. Knows no grpc; stateless, so threads may share it."""

from __future__ import annotations

import numpy as np
import torch
from moshi.models import MimiModel
from moshi.modules.conv import StreamingConv1d
from torch import Tensor

_CHUNK_FRAMES = 125  # 10 s at a time: a full-size Mimi takes 60 MB of activations for each second


class ClipEncoder:
    """Mimi's encoder for whole clips, with the memory of a short one."""

    def __init__(self, mimi: MimiModel):
        self._mimi = mimi
        self._device = next(mimi.parameters()).device
        self.sample_rate_hz = mimi.sample_rate
        self.samples_per_frame = mimi.frame_size
        # Enough whole frames to hold all that the first sample of a chunk can hear.
        self._lead_frames = -(-_reach_samples(mimi) // mimi.frame_size)

    @torch.inference_mode()
    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Float samples [N] at `sample_rate_hz`, N ≥ 1 → codes [T, K] uint16; T = ⌈N / samples_per_frame⌉.

        What is missing of the last frame is silence. The codes are those of MimiModel.encode.
        """
        mimi = self._mimi
        frames = -(-len(samples) // self.samples_per_frame)
        padded = np.zeros((1, 1, frames * self.samples_per_frame), np.float32)
        padded[0, 0, : len(samples)] = samples
        # As MimiModel._encode_to_unquantized_latent, but for the convolutions, whose activations
        # at the full sample rate are what costs memory.
        (hidden,) = mimi.encoder_transformer(self._convolve(torch.from_numpy(padded).to(self._device)))
        codes = mimi.quantizer.encode(mimi.downsample(hidden))  # [1, K, T]
        return codes[0].T.cpu().numpy().astype(np.uint16)

    def _convolve(self, audio: Tensor) -> Tensor:
        """mimi.encoder(audio), chunk by chunk: [1, 1, N] → [1, D, steps].

        The convolutions are causal with a finite reach, so a chunk that is preceded by that much
        of what came before gives what the whole gives.
        """
        size, lead = _CHUNK_FRAMES * self.samples_per_frame, self._lead_frames * self.samples_per_frame
        steps_per_frame = round(self._mimi.encoder_frame_rate / self._mimi.frame_rate)
        parts = []
        for start in range(0, audio.shape[-1], size):
            before = min(start, lead)
            part = self._mimi.encoder(audio[..., start - before : start + size])
            parts.append(part[..., before // self.samples_per_frame * steps_per_frame :])
        return torch.cat(parts, dim=-1)


def _reach_samples(mimi: MimiModel) -> int:
    """Samples before a chunk's first that its first output depends on."""
    reach, stride = 0, 1
    for module in mimi.encoder.modules():  # in the order of the signal; shortcuts of blocks add nothing
        if isinstance(module, StreamingConv1d):
            reach += module._padding_total * stride
            stride *= module._stride
    return reach
