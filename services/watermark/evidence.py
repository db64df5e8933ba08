"""Whether decoded symbols say a key, or only seem to. Knows no torch.

The question asked is: how large a share of all keys with the same mix of symbols would agree with
these symbols at least as well as the key looked for? It is computed, not estimated: the agreements of
a key drawn at random are a sum of one independent term for each place of the message, and the
distribution of such a sum is a convolution. Nothing is assumed about the audio or the nets: a decoder
that always answers the same, an untrained one, or music that repeats with the message's period agrees
with too many keys to prove any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A key counts as found when fewer than one key in a million would have agreed as well.
FALSE_ALARM = 1e-6
# The threshold where no agreement would be proof: too few symbols, or all alike.
UNREACHABLE = 2.0


@dataclass(frozen=True)
class Fit:
    """How well symbols agree with a key, at the rotation that speaks most for it.

    share: of the symbols, those that agree. chance: the share of keys that agree as well at any
    rotation, at most 1. threshold: the share from which the key counts as found. rotation: columns
    before the first whole message.
    """

    share: float
    chance: float
    threshold: float
    rotation: int

    @property
    def found(self) -> bool:
        return self.chance <= FALSE_ALARM


def tally(symbols: NDArray[np.int64], period: int, alphabet: int) -> NDArray[np.int64]:
    """symbols [T] → how often each was read at each place of the message [period, alphabet]."""
    counts = np.zeros((period, alphabet), np.int64)
    np.add.at(counts, (np.arange(len(symbols)) % period, symbols), 1)
    return counts


def fit(counts: NDArray[np.int64], message: list[int]) -> Fit:
    """How well the tallied symbols [period, alphabet] agree with a message of one period.

    The message's last symbol ends it and is the same in every key: it proves nothing.
    """
    total = int(counts.sum())
    if not total:
        return Fit(0.0, 1.0, UNREACHABLE, 0)
    return min(
        (_at_rotation(counts, message, rotation, total) for rotation in range(len(message))),
        key=lambda candidate: (candidate.chance, -candidate.share),
    )


def _at_rotation(counts: NDArray[np.int64], message: list[int], rotation: int, total: int) -> Fit:
    turned = np.roll(counts, -rotation, axis=0)  # place 0 is where a message begins
    places, end = turned[:-1], int(turned[-1, message[-1]])
    agreed = int(places[np.arange(len(places)), message[:-1]].sum())
    # Chance that random symbols, as frequent as the key's, agree k times or more, for each k; times
    # the number of rotations that were tried.
    mix = np.bincount(message[:-1], minlength=counts.shape[1]) / len(places)
    exactly = np.zeros(total + 1)
    exactly[0] = 1.0
    for place in places:
        longer = np.zeros_like(exactly)
        for count, weight in zip(place, mix, strict=True):
            longer[count:] += weight * exactly[: total + 1 - count]
        exactly = longer
    at_least = np.minimum(1.0, len(message) * exactly[::-1].cumsum()[::-1])
    proof = np.flatnonzero((at_least <= FALSE_ALARM) & (np.arange(total + 1) + end <= total))
    # Beyond what the places can give at all, the chance is 0 and the threshold out of reach.
    reachable = int(places.max(axis=1).sum())
    threshold = (int(proof[0]) + end) / total if len(proof) and proof[0] <= reachable else UNREACHABLE
    return Fit((agreed + end) / total, float(at_least[agreed]), threshold, rotation)


def vote(counts: NDArray[np.int64]) -> list[int]:
    """The symbol read most often at each place of the message."""
    return [int(symbol) for symbol in counts.argmax(axis=1)]
