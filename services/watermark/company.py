"""Which of the pieces that wait are marked together with the most urgent one. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence


def company(first: int, others: Sequence[int], most_samples: int) -> list[int]:
    """Places in `others` of pieces to mark along with the first, the most urgent ones that there is room for.

    first, others: lengths in samples, others from the most urgent on.
    most_samples: of all together, so that no pass takes long; the first may be longer, alone.
    """
    taken, room = [], most_samples - first
    for place, samples in enumerate(others):
        if samples <= room:
            taken.append(place)
            room -= samples
    return taken
