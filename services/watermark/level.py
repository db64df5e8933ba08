"""How loud the mark is. The stock scales a clip to its training level, marks, and scales back, which
needs the whole clip's power; a stream must fix the level beforehand or learn it as it goes.

Both kinds give one value per STFT column that depends on the stream's columns up to that one, so
the result does not depend on how the stream was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from services.watermark.hparams import TRAINING_POWER


class Level(Protocol):
    """A way to know the level; shared by all streams, of which it holds nothing."""

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        """
        power: mean square of the audio under each column's window [B, k].
        before: the same, summed up over the stream's columns before these [B], float64.
        first: how many those are [B].
        Returns: the level's power [B, k].
        """
        ...


@dataclass(frozen=True)
class FixedLevel:
    """Always the same: marks speech as loud as `power` exactly as strongly as the stock does.

    power: mean square; default the training material's, -25.5 dBFS, about where speech normalised
    to -23 LUFS lies. Quieter speech gets a relatively stronger mark, louder a weaker one.
    """

    power: float = TRAINING_POWER

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        return torch.full_like(power, self.power)


@dataclass(frozen=True)
class RunningLevel:
    """The mean power so far, which tends to the whole clip's, as the stock has it.

    prior_seconds: how much audio of the training level the mean starts from. Short follows quiet or
    loud voices soon; long is not misled by silence at the start.
    floor: lowest level, so that near-silence is not blown up: -60 dBFS.
    """

    prior_seconds: float = 0.3
    floor: float = 1e-6

    def step(self, power: Tensor, before: Tensor, first: Tensor, columns_per_second: float) -> Tensor:
        prior = self.prior_seconds * columns_per_second
        sums = before[:, None] + power.double().cumsum(1) + TRAINING_POWER * prior
        counts = first[:, None] + torch.arange(1, power.shape[1] + 1, device=power.device) + prior
        return (sums / counts).clamp_min(self.floor).to(power.dtype)
