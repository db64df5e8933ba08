"""Whether decoded symbols prove a key. Knows no torch.

A column votes for each symbol with the probability that the decoder gives it, not for the likeliest symbol alone:
in noise a decoder that wavers between two symbols still carries evidence, and the same clips prove a key at a
p-value smaller by several powers of ten.

Two tests decide. The first asks which share of all keys with the same mix of symbols would agree with these columns
at least as well as the key looked for. This p-value is computed, not estimated: the agreement of a random key is a
sum of one independent term per place of the message, and the distribution of such a sum is a convolution. It assumes
nothing about the audio or the nets: a decoder that always answers the same, an untrained one, an over-confident one,
or music that repeats with the message's period agrees with too many keys to prove any.

The second test asks whether the votes are for this key or for a similar one. A key that shares most symbols with the
clip's own passes the first test. But at the places where the two differ the votes are for the other symbol, as
clearly as they are for the shared symbols elsewhere. See `contradiction`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A key counts as found when fewer than one key in a million would have agreed as well.
MAX_P_VALUE = 1e-6
# The threshold when no agreement would be proof: too few columns, or all alike.
UNREACHABLE = 2.0
# Votes against a key from which on the clip's key is another one; see `contradiction`.
MAX_VOTES_AGAINST = 2.2
_UNIT = 1 / 16  # agreement is counted in these, so that its distribution is over integers
_MAX_UNITS = 2048  # of a clip; a longer one is counted in larger units


@dataclass(frozen=True)
class Fit:
    """How well a clip agrees with a key, at the best rotation.

    share: mean probability of the key's symbols. p_value: the share of keys that agree as well in any
    of the trials, at most 1. threshold: the share from which the key is significant.
    rotation: columns before the first whole message.
    """

    share: float
    p_value: float
    threshold: float
    rotation: int

    @property
    def significant(self) -> bool:
        return self.p_value <= MAX_P_VALUE


def tally(probabilities: NDArray[np.floating], period: int) -> NDArray[np.float64]:
    """Probabilities [alphabet, T] summed at each place of the message [period, alphabet]."""
    alphabet, columns = probabilities.shape
    sums = np.zeros((period, alphabet))
    np.add.at(sums, np.arange(columns) % period, probabilities.T)
    return sums


def fit(sums: NDArray[np.float64], message: list[int], trials: int = 1) -> Fit:
    """How well the sums [period, alphabet] agree with a message of one period.

    The message's last symbol ends it and is the same in every key: it proves nothing.
    trials: how many such sums of the clip are tested; each is another chance to agree by accident, as each
    rotation is (Bonferroni's correction).
    """
    units = np.rint(sums / max(_UNIT, float(sums.sum()) / _MAX_UNITS)).astype(np.int64)
    total = int(units.sum())
    if not total:
        return Fit(0.0, 1.0, UNREACHABLE, 0)
    at_least = np.minimum(1.0, trials * len(message) * _tails(units, message))
    candidates = []
    for rotation in range(len(message)):
        rotated = np.roll(units, -rotation, axis=0)  # place 0 is where a message begins
        places, end = rotated[:-1], int(rotated[-1, message[-1]])
        agreed = int(places[np.arange(len(places)), message[:-1]].sum())
        proof = np.flatnonzero((at_least[rotation] <= MAX_P_VALUE) & (np.arange(total + 1) + end <= total))
        # Beyond the most that the places can give, the p-value is 0 and the threshold unreachable.
        reachable = int(places.max(axis=1).sum())
        threshold = (int(proof[0]) + end) / total if len(proof) and proof[0] <= reachable else UNREACHABLE
        candidates.append(Fit((agreed + end) / total, float(at_least[rotation, agreed]), threshold, rotation))
    return min(candidates, key=lambda candidate: (candidate.p_value, -candidate.share))


def z_scores(sums: NDArray[np.float64], message: list[int]) -> NDArray[np.float64]:
    """How many standard deviations each window agrees better than random keys do, at each rotation.

    sums: [windows, period, alphabet] → [windows, period]. Fast; `fit` gives the exact p-value of the best ones.
    """
    period = len(message)
    mix = np.bincount(message[:-1], minlength=sums.shape[2]) / (period - 1)
    mean = sums @ mix  # [windows, period], of one place
    variance = np.square(sums) @ mix - np.square(mean)
    scores = np.empty(sums.shape[:2])
    places = np.arange(period - 1)
    for rotation in range(period):
        at = (places + rotation) % period
        agreed = sums[:, at, message[:-1]].sum(axis=1)
        scores[:, rotation] = (agreed - mean[:, at].sum(axis=1)) / np.sqrt(variance[:, at].sum(axis=1) + 1e-9)
    return scores


def contradiction(sums: NDArray[np.float64], message: list[int], rotation: int) -> float:
    """How far the votes are for another key than this one, a similar one; beyond 1 the key is refused.

    sums: probabilities summed at each place [period, alphabet]. A place votes against the key by the margin of the best
    other symbol. Measured on marked speech of the bundled model, clean, in noise (15 dB) and through MP3: where the key
    is the clip's own, misread symbols vary from message to message, and the root of the summed squared margins stays
    below 1.3 to 2.4 votes in 95 of 100 windows, however long they are. A place where the key is wrong votes against it
    in each message. So four messages tell keys that differ in two symbols (96 of 100), six those that differ in one
    (93). Long clips in noise may scatter more: there the limit is half of what a place typically votes for the key.
    """
    typical = float(np.median(vote_margins(sums, message, rotation)))
    return votes_against(sums, message, rotation) / max(MAX_VOTES_AGAINST, 0.5 * typical)


def votes_against(
    sums: NDArray[np.float64], message: list[int], rotation: int, more: NDArray[np.float64] | float = 0.0
) -> float:
    """The root of the summed squared margins of the places [period, alphabet] that are against the key.

    more: votes to come at each place [period]. Then the most that it can become, if all of them are against the key.
    """
    margins = vote_margins(sums, message, rotation) - np.roll(more, -rotation)
    return float(np.sqrt(np.square(np.minimum(margins, 0)).sum()))


def vote_margins(sums: NDArray[np.float64], message: list[int], rotation: int) -> NDArray[np.float64]:
    """At each place of the message [period], by how many votes the key's symbol is ahead of the best other one."""
    rotated = np.roll(sums, -rotation, axis=0)
    places = np.arange(len(message))
    own = rotated[places, message]
    others = rotated.copy()
    others[places, message] = -np.inf
    margins: NDArray[np.float64] = own - others.max(axis=1)
    return margins


def spelling_margin(sums: NDArray[np.float64]) -> float:
    """By how many votes the likeliest symbol is ahead of the next one, at the place [period, alphabet] where that is least."""
    ordered = np.sort(sums, axis=1)
    return float((ordered[:, -1] - ordered[:, -2]).min())


def _tails(units: NDArray[np.int64], message: list[int]) -> NDArray[np.float64]:
    """Chance that random symbols, as frequent as the key's, agree by k units or more [rotation, k]."""
    period, total = len(message), int(units.sum())
    mix = np.bincount(message[:-1], minlength=units.shape[1]) / (period - 1)
    exactly = np.zeros((period, total + 1))
    exactly[:, 0] = 1.0
    most = 0  # agreement that the places so far can give
    for place, row in enumerate(units):
        # With rotation r the message's end is at place r - 1, which proves nothing.
        end = exactly[(place + 1) % period].copy()
        before, reachable = exactly[:, : most + 1].copy(), most + 1
        most += int(row.max())
        exactly[:, : most + 1] = 0.0
        for count, weight in zip(row, mix, strict=True):
            if weight:
                exactly[:, count : count + reachable] += weight * before
        exactly[(place + 1) % period] = end
    return exactly[:, ::-1].cumsum(axis=1)[:, ::-1]


def vote(sums: NDArray[np.float64]) -> list[int]:
    """The likeliest symbol at each place of the message."""
    return [int(symbol) for symbol in sums.argmax(axis=1)]
