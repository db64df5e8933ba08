"""The votes for symbols that a search has read so far, message by message. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.watermark.evidence import fit, tally, vote, z_scores
from services.watermark.key import symbols_key

_EXACT = 2  # windows whose exact p-value is computed, those with the highest z-scores
_MIN_Z = 3.0  # below this the normal distribution's p-value is good enough: it is above a per cent
# Mean probability of the likeliest symbols of a message that is read clearly: 0.77 at most in 750 messages of the bundled
# model without a mark, 0.84 in half of the marked ones.
_CLEAR_PROBABILITY = 0.8


@dataclass(frozen=True)
class Window:
    """Messages `first` to `last` (exclusive) of a vote table, and how they fit the key.

    p_value: as if this were the only window. rotation: see evidence.Fit.
    """

    first: int
    last: int
    p_value: float
    rotation: int


class VoteTable:
    """Votes at one offset of one view. Message m is the columns m * message_len and on, wherever a mark's begin.

    sums: [messages, message_len, symbols], zeros where nothing is read. is_read, is_masked: [messages].
    """

    def __init__(self, columns: int, message_len: int, symbols: int):
        self.columns = columns
        self.messages = max(1, -(-columns // message_len))
        self.message_len = message_len
        self.sums = np.zeros((self.messages, message_len, symbols))
        self.is_read = np.zeros(self.messages, bool)
        self.is_masked = np.zeros(self.messages, bool)
        self._best: Window | None = None
        self._windows: list[tuple[int, int]] | None = None  # None when votes were added since

    def mask(self, first: int, last: int) -> None:
        """Leave these messages out from now on."""
        self.is_masked[first:last] = True
        self._windows = None

    def add(self, message: int, probabilities: NDArray[np.float64]) -> None:
        """probabilities: of the message's columns [symbols, ≤ message_len]."""
        self.sums[message] = tally(probabilities, self.message_len)
        self.is_read[message] = True
        self._windows = None

    def total(self, first: int, last: int) -> NDArray[np.float64]:
        """Votes of messages `first` to `last` [message_len, symbols], masked ones left out."""
        usable = ~self.is_masked[first:last]
        total: NDArray[np.float64] = self.sums[first:last][usable].sum(axis=0)
        return total

    def votes_of(self, messages: list[int]) -> NDArray[np.float64]:
        """How many votes these messages add at each place [message_len]. The last one may be cut."""
        columns = np.zeros((self.messages, self.message_len))
        columns.reshape(-1)[: self.columns] = 1
        votes: NDArray[np.float64] = columns[messages].sum(axis=0)
        return votes

    def windows(self) -> list[tuple[int, int]]:
        """What is tested: single messages, then half overlapping windows of 2, 4, 8, … messages that hold several."""
        if self._windows is None:
            self._windows, self._best = self._spans(), None
        return self._windows

    def _spans(self) -> list[tuple[int, int]]:
        usable = self.is_read & ~self.is_masked
        count = np.concatenate([[0], usable.cumsum()])
        spans = [(int(m), int(m) + 1) for m in np.flatnonzero(usable)]
        seen = set()  # windows that hold the same messages
        length = 2
        while True:
            for first in range(0, max(1, self.messages - length // 2), max(1, length // 2)):
                last = min(self.messages, first + length)
                held = (int(count[first]), int(count[last]))
                if held[1] - held[0] > 1 and held not in seen:
                    seen.add(held)
                    spans.append((first, last))
            if length >= self.messages:
                return spans
            length *= 2

    def best(self, message: list[int]) -> Window | None:
        """The window that fits the key best; None when nothing is read. Always the same message."""
        spans = self.windows()
        if self._best is None and spans:
            self._best = self._find_best(spans, message)
        return self._best

    def _find_best(self, spans: list[tuple[int, int]], message: list[int]) -> Window:
        usable = self.sums * ~self.is_masked[:, None, None]
        sums = np.concatenate([np.zeros((1, *self.sums.shape[1:])), usable.cumsum(0)])
        firsts, lasts = np.array(spans).T
        scores = z_scores(sums[lasts] - sums[firsts], message)  # [windows, rotations]
        candidates: list[Window] = []
        for index in np.argsort(-scores.max(axis=1))[:_EXACT]:
            first, last = spans[index]
            rotation = int(scores[index].argmax())
            z = float(scores[index, rotation])
            if z < _MIN_Z and candidates:
                break
            if z < _MIN_Z:
                p_value = min(1.0, self.message_len * 0.5 * math.erfc(z / math.sqrt(2)))
            else:
                exact = fit(self.total(first, last), message)
                p_value, rotation = exact.p_value, exact.rotation
            candidates.append(Window(first, last, p_value, rotation))
        return min(candidates, key=lambda window: window.p_value)

    def is_clear(self, message: int) -> bool:
        """Whether this message alone spells some key, and clearly."""
        sums = self.sums[message]
        return float(sums.max(axis=1).mean()) >= _CLEAR_PROBABILITY and symbols_key(vote(sums)) is not None

    def clearest(self) -> tuple[float, int, int]:
        """The window of up to eight messages that spells some message most clearly: how clearly, first, last."""
        best = (-1.0, 0, 0)
        for first, last in self._short_windows():
            sums = self.total(first, last)
            votes = max(1e-9, float(sums.sum()))
            clearness = float(sums.max(axis=1).sum() / votes - 1 / sums.shape[1]) * votes**0.5
            best = max(best, (clearness, first, last))
        return best

    def _short_windows(self) -> Iterator[tuple[int, int]]:
        several = [(first, last) for first, last in self.windows() if 1 < last - first <= 8]
        yield from several or self.windows()
