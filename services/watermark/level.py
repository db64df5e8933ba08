"""The level that the mark's strength follows. The stock scales a clip to its training level, marks it and
scales it back, which needs the whole clip's power; a stream uses a fixed level or estimates it as it goes.

Both give one value per STFT column from the stream's columns up to that one, so the result does not depend
on how the stream was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER


class Level(Protocol):
    """A level estimate. Stateless, shared by all streams."""

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        """
        power: mean square of the audio under each column's window [B, k].
        before: the same, summed over the stream's earlier columns [B], float64.
        first: the number of earlier columns [B].
        Returns: the level's power [B, k].
        """
        ...


@dataclass(frozen=True)
class FixedLevel:
    """A constant level: speech of mean square `power` is marked exactly as strongly as by the stock.

    power: mean square; default the training material's, -25.5 dBFS, about where speech normalised
    to -23 LUFS lies. Quieter speech gets a relatively stronger mark, louder a weaker one.
    """

    power: float = TRAINING_POWER

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        return torch.full_like(power, self.power)


@dataclass(frozen=True)
class RunningLevel:
    """The mean power so far, which tends to the whole clip's, which the stock uses.

    prior_seconds: weight of the training level as a prior, in seconds of audio. A short prior adapts fast to
    quiet or loud voices; a long one is robust against silence at the start.
    floor: lowest level, so that near-silence is not amplified: -60 dBFS.
    """

    prior_seconds: float = 0.3
    floor: float = 1e-6

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        prior = self.prior_seconds * columns_per_second
        sums = before[:, None] + power.double().cumsum(1) + TRAINING_POWER * prior
        counts = first[:, None] + torch.arange(1, power.shape[1] + 1, device=power.device) + prior
        return (sums / counts).clamp_min(self.floor).to(power.dtype)
