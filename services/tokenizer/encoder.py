"""Clips to frames of codes: Mimi's encoder. Knows no grpc; stateless, so threads may share it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence

import numpy as np
import torch
from moshi.models import MimiModel
from moshi.modules.conv import StreamingConv1d
from torch import Tensor

_CHUNK_FRAMES = 125  # 10 s at a time: a full-size Mimi takes 60 MB of activations for each second
# On a GPU the last partial chunk is padded to one of these lengths (frames), so that cuDNN plans few shapes.
# From eight frames on padding lengthens a pass by less than a quarter.
_PADDED_FRAMES = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112)


class ClipEncoder:
    """Mimi's encoder for whole clips, in the memory of short ones."""

    def __init__(self, mimi: MimiModel, *, pad: bool | None = None):
        """pad: whether clips are padded to few lengths; None: on CUDA."""
        self._mimi = mimi
        self._device = next(mimi.parameters()).device
        self._pad = self._device.type == "cuda" if pad is None else pad
        self.sample_rate_hz = mimi.sample_rate
        self.samples_per_frame = mimi.frame_size
        # Enough whole frames to hold the receptive field of a chunk's first sample.
        self._lead_frames = -(-_receptive_field_samples(mimi) // mimi.frame_size)

    def warm_up(self) -> None:
        """Run every shape once, so that no request meets a device fault or a slow first pass."""
        lengths = (*_PADDED_FRAMES, _CHUNK_FRAMES, 2 * _CHUNK_FRAMES) if self._pad else (1,)
        for frames in lengths:
            self.encode(np.zeros(frames * self.samples_per_frame, np.float32))

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Float samples [N] at `sample_rate_hz`, N ≥ 1 → codes [T, K] uint16; T = ⌈N / samples_per_frame⌉.

        The last frame is padded with silence. The codes are those of MimiModel.encode.
        Raises: ValueError when there are no samples.
        """
        return self._pass([samples])[0]

    def encode_all(self, clips: Sequence[np.ndarray]) -> list[np.ndarray | Exception]:
        """What `encode` gives or raises for each clip, in one pass of the nets; a clip that fails fails alone.

        All clips are padded with silence to the length of the longest. Mimi is causal, so a clip's codes are those
        that it has alone. Only the order of sums may differ, which on a GPU now and then decides between two codes
        that are as good as equal.
        """
        try:
            return list(self._pass(clips))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the pass's memory, which the next one needs
            if len(clips) == 1:
                return [error]
        half = len(clips) // 2
        return [*self.encode_all(clips[:half]), *self.encode_all(clips[half:])]

    @torch.inference_mode()
    def _pass(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        mimi, is_cuda = self._mimi, self._device.type == "cuda"
        if not min(map(len, clips)):
            raise ValueError("a clip without samples has no codes")
        frames = [-(-len(clip) // self.samples_per_frame) for clip in clips]
        # A thread may have another device current, where pinned memory would be counted.
        with torch.cuda.device(self._device) if is_cuda else contextlib.nullcontext():
            samples = self._padded(max(frames)) * self.samples_per_frame
            audio = torch.zeros(len(clips), 1, samples, pin_memory=is_cuda)
            for row, clip in zip(audio[:, 0].numpy(), clips, strict=True):
                row[: len(clip)] = clip
            # As MimiModel._encode_to_unquantized_latent, but for the convolutions, whose activations
            # at the full sample rate are what costs memory.
            assert mimi.encoder_transformer is not None  # Mimi has one
            (hidden,) = mimi.encoder_transformer(self._convolve(audio.to(self._device, non_blocking=True)))
            codes = mimi.quantizer.encode(mimi.downsample(hidden))  # [B, K, T]
            rows = codes.transpose(1, 2).int().cpu().numpy()
        # Copies: a clip that is cached must not keep the others in memory.
        return [row[:count].astype(np.uint16) for row, count in zip(rows, frames, strict=True)]

    def _padded(self, frames: int) -> int:
        """Frames of a pass whose longest clip has `frames`."""
        rest = frames % _CHUNK_FRAMES
        if not self._pad or not rest:
            return frames
        return (
            frames - rest + min(next((size for size in _PADDED_FRAMES if size >= rest), _CHUNK_FRAMES), _CHUNK_FRAMES)
        )

    def _convolve(self, audio: Tensor) -> Tensor:
        """mimi.encoder(audio), chunk by chunk: [B, 1, N] → [B, D, steps].

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


def _receptive_field_samples(mimi: MimiModel) -> int:
    """Samples before a chunk's first that its first output depends on."""
    reach, stride = 0, 1
    for module in mimi.encoder.modules():  # in the order of the signal; shortcuts of blocks add nothing
        if isinstance(module, StreamingConv1d):
            reach += module._padding_total * stride
            stride *= module._stride
    return reach
