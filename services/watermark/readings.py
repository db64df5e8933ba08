"""What a search has read of a view: a vote table for each offset within a hop, and the budget for further reading."""

from __future__ import annotations

from collections.abc import Callable

from services.watermark.evidence import MAX_P_VALUE, z_scores
from services.watermark.messages import Messages, runs
from services.watermark.reader import SymbolReader, View
from services.watermark.votes import VoteTable, Window

_EXTRA_SHARE = 0.3  # of a piece's messages that are read beside the first pass
_EXTRA_MESSAGES = 8  # at least
_UNLIKE_Z = 3.0  # a message agrees less with a key that is not similar to its own


class Readings:
    """Votes for the symbols of one view, and which windows of them fit the key best."""

    def __init__(
        self,
        reader: SymbolReader,
        view: View,
        message: list[int],
        *,
        views: int,
        stopped: Callable[[], bool],
    ):
        """views: of the piece that are searched, each of which may err."""
        shape = reader.hparams
        self._reader, self._view, self._message = reader, view, message
        self._views, self._stopped = views, stopped
        self._period, self._symbols = shape.message_len, shape.message_dim
        self.messages = Messages(view, shape)
        self.tables: dict[int, VoteTable] = {}
        self.budget = max(_EXTRA_MESSAGES, int(_EXTRA_SHARE * self.messages.count))  # messages that may be read still
        self._masked_s: list[tuple[float, float]] = []
        self._others: set[int] = set()

    def read(self, offset: int, messages: list[int]) -> None:
        """Read these messages, neighbours together. Raises: InterruptedError when stopped."""
        table = self.tables.get(offset) or self._open(offset)
        found = list(runs(messages, 2 * self.messages.group))
        columns = self._view.columns  # the last message may be cut
        stretches = [(a * self._period, min(b * self._period, columns) - a * self._period) for a, b in found]
        for (first, last), probabilities in zip(
            found, self._reader.read(self._view, offset, stretches, self._stopped), strict=True
        ):
            for m in range(first, last):
                start = (m - first) * self._period
                table.add(m, probabilities[:, start : start + self._period])
                if table.is_clear(m) and z_scores(table.sums[m : m + 1], self._message).max() < _UNLIKE_Z:
                    self._others.add(m)

    def read_extra(self, offset: int, messages: range) -> None:
        """Read those that are audible and not read yet, as far as the budget allows."""
        table = self.tables.get(offset)
        wanted = [
            m
            for m in messages
            if 0 <= m * self._period < self._view.columns
            and self.messages.is_audible(m)
            and (table is None or not table.is_read[m])
        ][: max(0, self.budget)]
        self.budget -= len(wanted)
        self.read(offset, wanted)

    def mask(self, first: int, last: int) -> None:
        """Leave these messages out from now on, at every offset."""
        for table in self.tables.values():
            table.mask(first, last)
        self._masked_s.append((self._view.seconds(first * self._period), self._view.seconds(last * self._period)))

    def is_masked(self, message: int) -> bool:
        middle_s = self.messages.middle_s(message)
        return any(start_s <= middle_s < end_s for start_s, end_s in self._masked_s)

    def is_other(self, message: int) -> bool:
        """Whether it was read clearly, at some offset, as a key that is not even similar."""
        return message in self._others

    @property
    def trials(self) -> int:
        """Windows that are tested in all: each is a chance to agree by accident."""
        return self._views * sum(len(table.windows()) for table in self.tables.values())

    def is_significant(self, window: Window) -> bool:
        return window.p_value * self.trials <= MAX_P_VALUE

    def best(self, condition: Callable[[int, Window], bool] = lambda offset, window: True) -> tuple[int, Window] | None:
        """Offset and window that fit the key best, of each table's best ones that meet the condition."""
        windows = [(offset, table.best(self._message)) for offset, table in self.tables.items()]
        known = [(offset, window) for offset, window in windows if window is not None and condition(offset, window)]
        return min(known, key=lambda each: each[1].p_value, default=None)

    def _open(self, offset: int) -> VoteTable:
        self.tables[offset] = table = VoteTable(self._view.columns, self._period, self._symbols)
        length_s = self._view.seconds(self._period)
        for start_s, end_s in self._masked_s:
            table.mask(int(start_s / length_s + 0.5), int(end_s / length_s + 0.5))
        return table
