"""Which of the pieces that wait are marked together with the oldest one. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence


def company(oldest: int, others: Sequence[int], most_samples: int) -> list[int]:
    """Places in `others` of pieces to mark along with the oldest, the shortest first: whoever brings little is
    close to its listener, and the passes of few columns, which take less time, are begun first anyway.

    oldest, others: lengths in samples, others from the oldest to the newest.
    most_samples: of all together, so that no pass takes long; the oldest may be longer, alone.
    """
    taken, total = [], oldest
    for place in sorted(range(len(others)), key=others.__getitem__):
        total += others[place]
        if total > most_samples:
            break
        taken.append(place)
    return taken
