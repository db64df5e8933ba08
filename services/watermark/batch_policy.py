"""Which waiting items share a pass with the most urgent one. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence


def select_batch(first: int, others: Sequence[int], max_samples: int) -> list[int]:
    """Indices in `others` of the items to mark together with the first: the most urgent ones that fit.

    first, others: lengths in samples, `others` most urgent first.
    max_samples: limit of the sum, so that no pass takes long. A longer first item is marked alone.
    """
    selected, room = [], max_samples - first
    for index, samples in enumerate(others):
        if room <= 0:
            break
        if samples <= room:
            selected.append(index)
            room -= samples
    return selected
