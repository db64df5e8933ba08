"""Which of the clips that wait are encoded together with the oldest one. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence

# A pass takes as long as its longest clip needs, times its clips: one that is shorter than that by more than
# this waits for a pass with its like.
_LONGEST = 2


def company(oldest: int, others: Sequence[int], most_samples: int) -> list[int]:
    """Places in `others` of clips to encode along with the oldest, the most alike first.

    oldest, others: lengths in samples, others from the oldest to the newest.
    most_samples: of a pass, where every clip counts as long as the longest; the oldest may be longer, alone.
    """
    shortest = longest = oldest
    taken: list[int] = []
    for place in sorted(range(len(others)), key=lambda place: _unlike(oldest, others[place])):
        low, high = min(shortest, others[place]), max(longest, others[place])
        if high <= _LONGEST * low and high * (len(taken) + 2) <= most_samples:
            shortest, longest = low, high
            taken.append(place)
    return taken


def _unlike(one: int, other: int) -> float:
    return max(one, other) / min(one, other)
