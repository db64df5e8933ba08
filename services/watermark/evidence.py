"""Whether decoded symbols say a key, or only seem to. Knows no torch.

A column speaks for each symbol with the probability that the decoder gives it, not for the likeliest
alone: in noise a decoder that wavers between two symbols still says much, and the same clips prove a
key by several more powers of ten.

The question asked is: how large a share of all keys with the same mix of symbols would agree with
these columns at least as well as the key looked for? It is computed, not estimated: the agreement of
a key drawn at random is a sum of one independent term for each place of the message, and the
distribution of such a sum is a convolution. Nothing is assumed about the audio or the nets: a decoder
that always answers the same, an untrained one, one that is surer than it should be, or music that
repeats with the message's period agrees with too many keys to prove any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A key counts as found when fewer than one key in a million would have agreed as well.
FALSE_ALARM = 1e-6
# The threshold where no agreement would be proof: too few columns, or all alike.
UNREACHABLE = 2.0
_UNIT = 1 / 16  # agreement is counted in these, so that its distribution is one over whole numbers
_MOST_UNITS = 2048  # of a clip; a longer one is counted in larger units


@dataclass(frozen=True)
class Fit:
    """How well a clip agrees with a key, at the rotation that speaks most for it.

    share: mean probability of the key's symbols. chance: the share of keys that agree as well in any
    of the ways tried, at most 1. threshold: the share from which the key counts as found.
    rotation: columns before the first whole message.
    """

    share: float
    chance: float
    threshold: float
    rotation: int

    @property
    def found(self) -> bool:
        return self.chance <= FALSE_ALARM


def tally(probabilities: NDArray[np.floating], period: int) -> NDArray[np.float64]:
    """Of each symbol in each column [alphabet, T] → summed at each place of the message [period, alphabet]."""
    alphabet, columns = probabilities.shape
    sums = np.zeros((period, alphabet))
    np.add.at(sums, np.arange(columns) % period, probabilities.T)
    return sums


def fit(sums: NDArray[np.float64], message: list[int], looks: int = 1) -> Fit:
    """How well the sums [period, alphabet] agree with a message of one period.

    The message's last symbol ends it and is the same in every key: it proves nothing.
    looks: how many such sums of the clip may be tried before one is believed; each is another
    chance to agree by accident, as each rotation is.
    """
    units = np.rint(sums / max(_UNIT, float(sums.sum()) / _MOST_UNITS)).astype(np.int64)
    total = int(units.sum())
    if not total:
        return Fit(0.0, 1.0, UNREACHABLE, 0)
    at_least = np.minimum(1.0, looks * len(message) * _tails(units, message))
    candidates = []
    for rotation in range(len(message)):
        turned = np.roll(units, -rotation, axis=0)  # place 0 is where a message begins
        places, end = turned[:-1], int(turned[-1, message[-1]])
        agreed = int(places[np.arange(len(places)), message[:-1]].sum())
        proof = np.flatnonzero((at_least[rotation] <= FALSE_ALARM) & (np.arange(total + 1) + end <= total))
        # Beyond what the places can give at all, the chance is 0 and the threshold out of reach.
        reachable = int(places.max(axis=1).sum())
        threshold = (int(proof[0]) + end) / total if len(proof) and proof[0] <= reachable else UNREACHABLE
        candidates.append(Fit((agreed + end) / total, float(at_least[rotation, agreed]), threshold, rotation))
    return min(candidates, key=lambda candidate: (candidate.chance, -candidate.share))


def _tails(units: NDArray[np.int64], message: list[int]) -> NDArray[np.float64]:
    """Chance that random symbols, as frequent as the key's, agree by k units or more [rotation, k]."""
    period, total = len(message), int(units.sum())
    mix = np.bincount(message[:-1], minlength=units.shape[1]) / (period - 1)
    exactly = np.zeros((period, total + 1))
    exactly[:, 0] = 1.0
    most = 0  # agreement that the places so far can give
    for place, row in enumerate(units):
        # A rotation by r has the message's end at place r - 1, which proves nothing.
        end = exactly[(place + 1) % period].copy()
        before, reach = exactly[:, : most + 1].copy(), most + 1
        most += int(row.max())
        exactly[:, : most + 1] = 0.0
        for count, weight in zip(row, mix, strict=True):
            if weight:
                exactly[:, count : count + reach] += weight * before
        exactly[(place + 1) % period] = end
    return exactly[:, ::-1].cumsum(axis=1)[:, ::-1]


def vote(sums: NDArray[np.float64]) -> list[int]:
    """The likeliest symbol at each place of the message."""
    return [int(symbol) for symbol in sums.argmax(axis=1)]
