"""The messages of a view: where each lies, how loud it is, and which ones a sparse reading takes. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from services.watermark.hparams import Hparams
from services.watermark.reader import View

_GROUP_S, _MIN_GROUP, _MAX_GROUP = 1.8, 4, 8  # seconds and messages, of which a sparse reading takes one
_MIN_COLUMNS = 2 / 3  # of a message, that may prove a key
_LOUDER, _PAUSE = 6.0, 200.0  # ratios of power within a group


def group_size(shape: Hparams) -> int:
    """Messages of a group: about two seconds."""
    return min(_MAX_GROUP, max(_MIN_GROUP, round(_GROUP_S / shape.message_seconds)))


class Messages:
    """Message m of a view is its columns m * period and on, wherever a mark's begin. Immutable."""

    def __init__(self, view: View, shape: Hparams):
        self._view, self._period, self._hop = view, shape.message_len, shape.hop_length
        self.group = group_size(shape)
        self.count = -(-view.columns // self._period)
        rest = view.columns % self._period  # the last message's columns: alone they prove no key if they are few
        self._cut_message = self.count - 1 if 0 < rest < _MIN_COLUMNS * self._period else -1
        self.audible = [m for m in range(self.count) if self.is_audible(m)]

    def is_audible(self, message: int) -> bool:
        first, last = self._hops(message)
        return bool(self._view.audible[first:last].any())

    def loudness(self, message: int) -> float:
        """Its power, summed."""
        return float(self._view.power[slice(*self._hops(message))].sum())

    def middle_s(self, message: int) -> float:
        """Where its middle lies in the clip."""
        return self._view.seconds((message + 0.5) * self._period)

    def sparse(self, *, quieter: bool, masked: Callable[[int], bool] = lambda message: False) -> list[int]:
        """The loudest message of each group.

        quieter: also the loudest of those that are next to much louder sound. masked: messages to leave out.
        """
        chosen = []
        for first in range(0, self.count, self.group):
            group = [m for m in range(first, min(self.count, first + self.group)) if not masked(m)]
            if not group or group == [self._cut_message]:
                continue
            loudness = np.array([self.loudness(m) for m in group])
            levels = [loudness]
            if quieter:  # next to louder sound the quieter may be what is marked; what is quieter still is a pause
                most = loudness.max()
                levels.append(np.where((loudness < most / _LOUDER) & (loudness > most / _PAUSE), loudness, 0))
            for level in levels:
                m = group[int(level.argmax())]
                if level.max() > 0 and self.is_audible(m):
                    chosen.append(m)
        return sorted(chosen)

    def _hops(self, message: int) -> tuple[int, int]:
        """Hops of samples under a message."""
        scale = self._view.hop / self._hop
        first = int(message * self._period * scale)
        return first, max(first + 1, int((message + 1) * self._period * scale))


def runs(messages: list[int], longest: int) -> Iterator[tuple[int, int]]:
    """Neighbouring messages as (first, last), last exclusive, `longest` at most."""
    first = None
    for index, message in enumerate(messages):
        if first is None:
            first = message
        last = index == len(messages) - 1
        if last or messages[index + 1] != message + 1 or message + 1 - first == longest:
            yield first, message + 1
            first = None
