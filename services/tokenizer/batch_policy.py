"""Which of the waiting clips are encoded together with the oldest one. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence

# A pass takes as long as its longest clip, times its clips. A clip that is shorter or longer than the others by more
# than this factor waits for a pass of its own length.
_MAX_LENGTH_RATIO = 2


def batch_policy(oldest: int, others: Sequence[int], max_samples: int) -> list[int]:
    """Indices in `others` of the clips to encode along with the oldest, closest length first.

    oldest, others: lengths in samples, others from the oldest to the newest.
    max_samples: of a pass, where every clip counts as long as the longest; a longer oldest clip goes alone.
    """
    shortest = longest = oldest
    chosen: list[int] = []
    for index in sorted(range(len(others)), key=lambda index: _length_ratio(oldest, others[index])):
        low, high = min(shortest, others[index]), max(longest, others[index])
        if high <= _MAX_LENGTH_RATIO * low and high * (len(chosen) + 2) <= max_samples:
            shortest, longest = low, high
            chosen.append(index)
    return chosen


def _length_ratio(one: int, other: int) -> float:
    return max(one, other) / min(one, other)
