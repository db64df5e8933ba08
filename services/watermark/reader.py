"""Decodes columns of a clip into symbol probabilities, a stretch here and there or all of it.

The decoder is trained on clips at one level. Here each column is scaled by the level of the two messages' length
around it, so a quiet sentence beside louder sound is read as well as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER
from services.watermark.message_decoder import MessageDecoder, cpu_decoder
from services.watermark.weights import Nets

CONTEXT = 3  # columns decoded on each side of a stretch, where the clip has them; more change the votes by less than a percent
_BATCH_CELLS = 32768  # bins x columns decoded at once on a CPU, so that they stay in its cache
_DEVICE_CELLS = 1 << 22  # and on an accelerator
_SILENCE = 1e-9  # mean square: -90 dBFS


@dataclass(frozen=True)
class View:
    """One channel of a clip at the model's rate, as the decoder is to read it.

    audio: [n + n_fft], mirrored ends included. gains: for each hop of samples, the factor to the training level.
    hop: samples from column to column. clip_rate_hz: samples of this view per second of the clip.
    speed, keeps_pitch: the change of speed that the view undoes.
    """

    audio: Tensor
    gains: Tensor
    audible: NDArray[np.bool_]  # of each hop of samples
    power: NDArray[np.float64]  # of each hop of samples
    hop: float
    columns: int
    clip_rate_hz: float
    speed: float = 1.0
    keeps_pitch: bool = False

    def seconds(self, column: float, offset: int = 0) -> float:
        """Where a column's centre lies in the clip."""
        return (offset + column * self.hop) / self.clip_rate_hz


class SymbolReader:
    """The decoder of one model. Stateless; threads may share it."""

    def __init__(self, nets: Nets):
        self.hparams = nets.hparams
        self.device = nets.dec_m.linear.weight.device
        is_cpu = self.device.type == "cpu"
        self._decoder = cpu_decoder(nets) if is_cpu else MessageDecoder(nets.dec_m, torch.float32)
        self._window = torch.hann_window(nets.hparams.n_fft, device=self.device)

    @torch.inference_mode()
    def view(
        self, samples: NDArray[np.float32], clip_rate_hz: float, speed: float = 1.0, keeps_pitch: bool = False
    ) -> View:
        """samples: one channel [n] at the model's rate, for a change of pitch already resampled."""
        shape = self.hparams
        audio = torch.tensor(samples, device=self.device)
        audio = torch.nn.functional.pad(audio, (0, max(0, shape.n_fft - len(audio))))
        hops = -(-len(audio) // shape.hop_length)
        padded = torch.nn.functional.pad(audio, (0, hops * shape.hop_length - len(audio)))
        power = padded.reshape(hops, shape.hop_length).square().mean(dim=1).double()
        half = shape.message_len
        sums = torch.nn.functional.pad(power.cumsum(0), (1, 0))
        index = torch.arange(hops, device=self.device)
        first, last = (index - half).clamp_min(0), (index + half + 1).clamp_max(hops)
        level = (sums[last] - sums[first]) / (last - first)
        gains = torch.sqrt(TRAINING_POWER / level.clamp_min(_SILENCE)).float()
        half_window = shape.n_fft // 2
        mirrored = torch.nn.functional.pad(audio[None, None], (half_window, half_window), mode="reflect")[0, 0]
        hop = shape.hop_length / speed if keeps_pitch else float(shape.hop_length)
        columns = int(len(audio) / hop) + 1
        host_power = power.cpu().numpy()
        return View(mirrored, gains, host_power > _SILENCE, host_power, hop, columns, clip_rate_hz, speed, keeps_pitch)

    @torch.inference_mode()
    def read(
        self,
        view: View,
        offset: int,
        stretches: Sequence[tuple[int, int]],
        stopped: Callable[[], bool] = lambda: False,
    ) -> list[NDArray[np.float64]]:
        """Symbol probabilities of stretches of columns.

        offset: samples from the clip's begin to column 0. stretches: (first column, columns); columns outside of the
            clip are read as silence.
        stopped: asked between passes of the decoder.
        Returns: [symbols, columns] of each.
        Raises: InterruptedError when stopped.
        """
        results: list[NDArray[np.float64] | None] = [None] * len(stretches)
        shapes: dict[tuple[int, int, int], list[int]] = {}
        for index, (first, columns) in enumerate(stretches):
            left = min(CONTEXT, max(0, first))
            right = min(CONTEXT, max(0, view.columns - first - columns))
            shapes.setdefault((left, columns, right), []).append(index)
        cells = _BATCH_CELLS if self.device.type == "cpu" else _DEVICE_CELLS
        for (left, columns, right), indices in shapes.items():
            batch = max(1, cells // (self.hparams.message_band_size * (left + columns + right)))
            for start in range(0, len(indices), batch):
                if stopped():
                    raise InterruptedError("the search was given up")
                part = indices[start : start + batch]
                firsts = [stretches[index][0] for index in part]
                probabilities = self._decode(view, offset, firsts, left, columns, right)
                for index, each in zip(part, probabilities, strict=True):
                    results[index] = each
        return [each for each in results if each is not None]

    def _decode(
        self, view: View, offset: int, firsts: list[int], left: int, columns: int, right: int
    ) -> NDArray[np.float64]:
        """[len(firsts), symbols, columns]. left, right: columns of context."""
        shape = self.hparams
        column = torch.tensor(firsts, device=self.device)[:, None]
        column = column + torch.arange(-left, columns + right, device=self.device)
        starts = (offset + column.double() * view.hop).round().long()
        inside = (column >= 0) & (starts >= 0) & (starts + shape.n_fft <= len(view.audio))
        starts = starts.clamp(0, len(view.audio) - shape.n_fft)
        frames = view.audio[starts[..., None] + torch.arange(shape.n_fft, device=self.device)]
        magnitudes = torch.fft.rfft(frames * self._window).abs()[..., : shape.message_band_size]
        gains = view.gains[(starts // shape.hop_length).clamp_max(len(view.gains) - 1)]
        magnitudes = magnitudes * (gains * inside)[..., None]
        scores = self._decoder(magnitudes.transpose(1, 2), left, right).float()
        decoded: NDArray[np.float64] = scores.softmax(dim=1).double().cpu().numpy()
        return decoded
