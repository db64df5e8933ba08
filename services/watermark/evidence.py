"""Whether decoded symbols say a key, or only seem to. Knows no torch.

The question asked is: among all keys with the same mix of symbols, how many would fit these
symbols as well as the one looked for? Under a random arrangement of the key's symbols the number
of agreements is a sum of one entry per row and column of a matrix, whose mean and variance are
known exactly (Hoeffding, A combinatorial central limit theorem, 1951). Nothing is assumed about
the audio or the nets: a decoder that always answers the same, an untrained one, or music that
repeats with the message's period agrees with every arrangement alike and so proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Standard deviations above chance from which a key counts as found. Counted out for one message read
# once, symbol for symbol, where deviations are coarsest: fewer than one arrangement in a million reaches
# it at any of the 21 rotations, whatever the key (tests/unit/watermark/test_watermark_evidence.py).
SIGMAS = 6.5
# The threshold where no agreement would be proof: all symbols alike, or none.
UNREACHABLE = 2.0


@dataclass(frozen=True)
class Fit:
    """How well symbols agree with a key.

    share: of the symbols, those that agree at the best rotation. expected, deviation: of the share,
    over arrangements of the key. rotation: columns before the first whole message.
    """

    share: float
    expected: float
    deviation: float
    rotation: int

    @property
    def threshold(self) -> float:
        """The share from which the key counts as found; above 1 when no share would be proof."""
        return self.expected + SIGMAS * self.deviation if self.deviation > 1e-9 else UNREACHABLE

    @property
    def sigmas(self) -> float:
        """How far the share lies above chance."""
        return (self.share - self.expected) / self.deviation if self.deviation > 1e-9 else 0.0


def tally(symbols: NDArray[np.int64], period: int, alphabet: int) -> NDArray[np.int64]:
    """symbols [T] → how often each was read at each place of the message [period, alphabet]."""
    counts = np.zeros((period, alphabet), np.int64)
    np.add.at(counts, (np.arange(len(symbols)) % period, symbols), 1)
    return counts


def fit(counts: NDArray[np.int64], message: list[int]) -> Fit:
    """How well the tallied symbols [period, alphabet] agree with a message of one period."""
    period, total = len(counts), counts.sum()
    if not total:
        return Fit(0.0, 0.0, 0.0, 0)
    agree = counts[:, message]  # [place, symbol of the message]
    place = np.arange(period)
    agreements = [int(agree[place, (place - rotation) % period].sum()) for rotation in range(period)]
    best = int(np.argmax(agreements))
    centred = agree - agree.mean(0, keepdims=True) - agree.mean(1, keepdims=True) + agree.mean()
    deviation = np.sqrt((centred**2).sum() / (period - 1))
    return Fit(
        agreements[best] / int(total), float(agree.sum() / period / total), float(deviation / total), best
    )


def vote(counts: NDArray[np.int64]) -> list[int]:
    """The symbol read most often at each place of the message."""
    return [int(symbol) for symbol in counts.argmax(axis=1)]
