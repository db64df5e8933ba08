"""What the callers say: sentences of real prose, so that lengths are spread as they are in life.

`sentences.txt` holds the first 400 sentences of 6 to 400 characters of Jane Austen's "Pride and
Prejudice" (1813, public domain), in the text of Debian's r-cran-janeaustenr, quotation marks removed.
Half of them are shorter than 80 characters, one in twenty is longer than 240.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib import resources


@cache
def sentences() -> tuple[str, ...]:
    """All of them, in the novel's order."""
    return tuple((resources.files(__package__) / "sentences.txt").read_text().splitlines())


class Texts:
    """Sentences drawn evenly; the same seed draws the same."""

    def __init__(self, seed: int, among: Sequence[str]):
        self._random, self._among = random.Random(seed), among

    def next(self) -> str:
        return self._random.choice(self._among)
