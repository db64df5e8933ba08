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


class LevelMeter(Protocol):
    """One stream's level."""

    def step(self, power: Tensor) -> Tensor:
        """power: mean square of the audio under each column's window [k] → the level's power [k]."""
        ...


class Level(Protocol):
    """A way to know the level; shared by all streams."""

    def open(self, columns_per_second: float) -> LevelMeter:
        """The meter of a new stream."""
        ...


@dataclass(frozen=True)
class FixedLevel:
    """Always the same: marks speech as loud as `power` exactly as strongly as the stock does.

    power: mean square; default the training material's, -25.5 dBFS, about where speech normalised
    to -23 LUFS lies. Quieter speech gets a relatively stronger mark, louder a weaker one.
    """

    power: float = TRAINING_POWER

    def open(self, columns_per_second: float) -> LevelMeter:
        return self

    def step(self, power: Tensor) -> Tensor:
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

    def open(self, columns_per_second: float) -> LevelMeter:
        return _Running(self.prior_seconds * columns_per_second, self.floor)


class _Running:
    def __init__(self, prior_columns: float, floor: float):
        self._floor = floor
        self._sum: float | Tensor = TRAINING_POWER * prior_columns
        self._count = prior_columns

    def step(self, power: Tensor) -> Tensor:
        if not len(power):
            return power
        sums = self._sum + power.double().cumsum(0)
        counts = self._count + torch.arange(1, len(power) + 1, dtype=torch.float64, device=power.device)
        self._sum, self._count = sums[-1], self._count + len(power)
        return (sums / counts).clamp_min(self._floor).to(power.dtype)
