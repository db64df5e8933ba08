"""Finds the marks of one key in one channel of a piece of audio, in bounded time.

The stock decoder looks for the message's phase by decoding the whole clip at every tenth sample of a hop: 205 times for
the public model. Here a clip is read sparsely first, the loudest of every four messages at a few offsets within a hop.
Marked speech proves its key in one or two messages. Where a stretch seems to hold the key and does not prove it, all of
it is read, and at finer offsets, as far as the budget allows. A mark that is found is followed to both ends; then the
search goes on beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from services.watermark.evidence import (
    Fit,
    contradiction,
    fit,
    spelling_margin,
    vote,
    vote_margins,
    votes_against,
    z_scores,
)
from services.watermark.findings import Findings, Mark
from services.watermark.key import symbols_key
from services.watermark.reader import SymbolReader, View
from services.watermark.readings import Readings
from services.watermark.votes import VoteTable, Window

_PROMISING = 0.02  # a window that chance explains better is not worth more reading
_REFINABLE = 0.002  # and one that was read in full is not worth finer offsets
_FINEST = 32  # offsets are refined down to hop / 32
_MIN_TRACED = 6  # messages of a mark that are read, if it has as many, before the key is believed
_NEAR = 8  # messages to each side of a mark's clearest one, which are read where votes are against the key
_DOUBTFUL = 1.1  # votes against the key from which on that is done
_NEAR_AT_ONCE = 4  # of those messages
_SURELY_OTHER = 1.75  # times the votes against it that refuse a key; its own mark had 1.6, read between its columns
_SURELY_OWN = 0.5  # likewise, where one offset left it open
_MAX_REFINED = 8  # messages read at finer offsets
_DESCRIBED = 6  # more messages that are read to tell what a clip spells that does not hold the key
_SPELLED = 1.0  # votes that each place of them is ahead by; then more would hardly change what they spell
_CLEAR = 2.2  # clearness from which that is worth it: without any mark 2.1 at most, with another key's 3.3 and more
_EDGE_Z = 3.0  # a message that agrees less is beyond the mark's end; marked speech has 5 to 10


class Search:
    """One view of one channel of one piece. Call `run` once."""

    def __init__(
        self,
        reader: SymbolReader,
        view: View,
        message: list[int],
        *,
        channel: int,
        offsets: int,
        views: int,
        stopped: Callable[[], bool],
        at_s: float = 0.0,
    ):
        """offsets: read per hop at first. views: of the piece that are searched, each of which may err.

        at_s: where a mark's columns may be centred; the first offset is there.
        """
        shape = reader.hparams
        self._view, self._message, self._channel = view, message, channel
        self._hop, self._period = shape.hop_length, shape.message_len
        self._step = self._hop // offsets
        phase = round(at_s * view.clip_rate_hz % view.hop)
        self._offsets = [(phase + self._step * index) % self._hop for index in _spread(offsets)]
        self._together = reader.device.type != "cpu"
        self._readings = Readings(reader, view, message, views=views, stopped=stopped)
        self._messages = self._readings.messages
        self._group = self._messages.group
        self._max_misses = self._group // 2  # messages within a mark that agree less: a pause, or a noise
        self._dense: set[tuple[int, int, int]] = set()  # offset, first and last message that are read in full
        self._most_against = 1.0  # see evidence.contradiction
        self._left_open = (0, 0, 0.0)  # by one offset: first and last message, and the key's share of the votes
        self._short: list[Mark] = []  # marks of which fewer than _MIN_TRACED messages were read
        self.findings = Findings(audible_messages=len(self._messages.audible))

    def run(self, *, describes: bool = True) -> Findings:
        """describes: also `describe`, where no mark is found. Raises: InterruptedError when stopped."""
        readings = self._readings
        # An accelerator reads all offsets at once; a CPU saves those that are not needed.
        for offsets in [self._offsets] if self._together else [[offset] for offset in self._offsets]:
            for offset in offsets:
                messages = self._messages.sparse(quieter=True, masked=readings.is_masked)
                readings.read(offset, [m for m in messages if not readings.is_other(m)])
            self._find()
        if not self.findings.marks:
            self._deepen()
        if not self.findings.marks and describes:
            self.describe()
        return self.findings

    def glance(self, loudest: int = 0) -> tuple[float, float, float]:
        """The p-value of the best window of a sparse reading, the share of the votes that are for the key, and where a
        column is centred about the window's middle, in seconds.

        loudest: read so many messages instead, at the first offset alone. Raises: InterruptedError when stopped.
        """
        messages, offsets = self._messages.sparse(quieter=False), self._offsets
        if loudest:
            messages = sorted(sorted(self._messages.audible, key=self._messages.loudness)[-loudest:])
            offsets = offsets[:1]
        for offset in offsets:
            self._readings.read(offset, messages)
        best = self._readings.best()
        if best is None:
            return 1.0, 0.0, 0.0
        offset, window = best
        tables = self._readings.tables.values()
        share = max(fit(table.total(0, table.messages), self._message).share for table in tables)
        column = (window.first + window.last) * self._period // 2
        return window.p_value, share, self._view.seconds(column, offset)

    def describe(self) -> None:
        """Put into the findings, where no mark is, the best that was read and what the clearest of it spells.

        Raises: InterruptedError when stopped.
        """
        readings, tables = self._readings, self._readings.tables
        if self.findings.other_key or not tables:
            return
        (clearness, first, last), offset = max((table.clearest(), offset) for offset, table in tables.items())
        if clearness >= _CLEAR:
            readings.budget = max(readings.budget, _DESCRIBED)
            for margin in range(1, _DESCRIBED // 2 + 1):
                if spelling_margin(tables[offset].total(first, last)) >= _SPELLED:
                    break
                readings.read_extra(offset, range(first - margin, last + margin))
                clearness, first, last = tables[offset].clearest()
        self.findings.clearness = clearness
        self.findings.decoded_key = symbols_key(vote(tables[offset].total(first, last)))
        if (best := readings.best()) is not None:
            offset, window = best
            result = fit(tables[offset].total(window.first, window.last), self._message, readings.trials)
            self.findings.confidence, self.findings.threshold = result.share, result.threshold

    # The stages.

    def _find(self) -> None:
        """Follow every significant window, the best first."""
        readings = self._readings
        while (best := readings.best()) is not None and readings.is_significant(best[1]):
            offset, window = best
            self._trace(offset, window)

    def _deepen(self) -> None:
        """Read all of the promising windows, then at finer offsets, until one is proof or the budget is spent."""
        readings = self._readings
        while readings.budget > 0:
            promising = self._promising()
            if promising is None:
                return
            offset, window = promising
            self._dense.add((offset, window.first, window.last))
            margin = 2 if window.last - window.first < self._group else 0
            readings.read_extra(offset, range(window.first - margin, window.last + margin))
            step = self._step
            while (best := readings.best()) is not None and not readings.is_significant(best[1]):
                step //= 2
                offset, window = best
                if step * _FINEST < self._hop or window.p_value > _REFINABLE or readings.budget <= 0:
                    break
                middle = (window.first + window.last) // 2
                near = range(
                    max(window.first, middle - _MAX_REFINED // 2), min(window.last, middle + _MAX_REFINED // 2)
                )
                for finer in ((offset - step) % self._hop, (offset + step) % self._hop):
                    readings.read_extra(finer, near)
            self._find()
            if self.findings.marks:
                return

    def _trace(self, offset: int, window: Window) -> None:
        """Follow a mark to both ends, and believe it if all of its votes are for the key. Masks its messages.

        A mark that is read badly at this offset may look like a similar key's. So where that is not sure, another offset
        decides, which may not read the mark worse, and at which the key must be the clearer.
        """
        readings = self._readings
        table, rotation = readings.tables[offset], window.rotation
        inside = [m for m in range(window.first, window.last) if table.is_read[m] and not table.is_masked[m]]
        core = max(inside, key=lambda m: self._z(table, m, rotation))
        open_messages = [m for m in range(table.messages) if self._is_open(table, m)]
        if len(open_messages) + int(table.is_read.sum()) <= _MIN_TRACED:
            # A short clip: nearly all of it is read in the end. One message within it may prove needless.
            ends = {self._messages.audible[0], self._messages.audible[-1]}
            inner = sorted(set(open_messages) - ends, key=self._messages.loudness)
            readings.read(offset, [m for m in open_messages if m not in inner[:1]])
        first = self._follow(offset, rotation, core, -1)
        last = self._follow(offset, rotation, core, 1) + 1
        self._read_loudest(offset, first, last, rotation)
        self._read_doubtful(offset, first, last, core, rotation)
        result = self._fit(table, first, last)
        # All that agrees is asked first: of a similar key's mark a message that was misread may seem to prove this one.
        against = contradiction(table.total(first, last), self._message, rotation)
        if against <= self._most_against and not result.significant:
            first, last = window.first, window.last
            result = self._fit(table, first, last)
            against = contradiction(table.total(first, last), self._message, result.rotation)
        open_first, open_last, open_share = self._left_open
        is_worse = first < open_last and last > open_first and result.share < open_share
        is_other = against > self._most_against or is_worse
        readable = [m for m in range(first, last) if self._is_open(table, m)]
        is_short = len(readable) + int((table.is_read & ~table.is_masked)[first:last].sum()) < _MIN_TRACED
        if is_other:
            # Nor is a short rest of it a mark.
            self.findings.marks = [mark for mark in self.findings.marks if mark not in self._short]
            if not self.findings.marks and not (is_worse and self.findings.other_key):
                self._describe_other(table.total(first, last), rotation)
        elif result.significant and not (is_short and self.findings.other_key):
            mark = self._mark(offset, first, last, result)
            self.findings.marks.append(mark)
            self._short += [mark] if is_short else []
        if is_other and against <= _SURELY_OTHER and offset in self._offsets[:-1] and self._most_against == 1:
            table.mask(first, last)
            self._most_against, self._left_open = _SURELY_OWN, (first, last, result.share)
        else:
            readings.mask(first, last)

    def _follow(self, offset: int, rotation: int, core: int, step: int) -> int:
        """The furthest message of a mark on one side of its core. It may pause for a few messages, so that of those
        ahead the furthest is read first."""
        readings, end = self._readings, core
        table = readings.tables[offset]
        while True:
            ahead = self._ahead(table, end, step)
            unread = [m for m in ahead if self._is_open(table, m)]
            further = None
            for wanted in ([], unread[-1:], unread[:-1]):
                readings.read(offset, sorted(wanted))
                agree = [m for m in ahead if table.is_read[m] and self._z(table, m, rotation) >= _EDGE_Z]
                further = agree[-1] if agree else self._next_group(table, end, step, rotation, core)
                if further is not None:
                    break
            if further is None:
                return end
            end = further

    def _read_loudest(self, offset: int, first: int, last: int, rotation: int) -> None:
        """Read more of a mark, if it has more, so that enough is read to tell a similar key: until the votes that are
        missing could not make the key doubtful, all of them against it."""
        table = self._readings.tables[offset]
        while (missing := _MIN_TRACED - int(table.is_read[first:last].sum())) > 0:
            unread = [m for m in range(first, last) if self._is_open(table, m)]
            loudest = sorted(unread, key=self._messages.loudness, reverse=True)[:missing]
            if not loudest:
                return
            total = table.total(first, last)
            count = 0  # of these that have to be read: their votes are for the key at best, the others' against it
            while count < len(loudest):
                votes = table.votes_of(loudest[count:]) - table.votes_of(loudest[:count])
                if votes_against(total, self._message, rotation, votes) <= _DOUBTFUL:
                    break
                count += 1
            if count == 0 and self._fit(table, first, last).significant:
                return
            self._readings.read(offset, sorted(loudest[: max(1, count)]))

    def _read_doubtful(self, offset: int, first: int, last: int, core: int, rotation: int) -> None:
        """Where votes are against the key, read around the core until it is surely another's mark, or all is read."""
        table = self._readings.tables[offset]
        near = range(max(first, core - 2 * _NEAR), min(last, core + 2 * _NEAR + 1))
        unread = [m for m in near if self._is_open(table, m)]
        if votes_against(table.total(first, last), self._message, rotation) <= _DOUBTFUL:
            return
        while unread:
            total = table.total(first, last)
            if contradiction(total, self._message, rotation) > _SURELY_OTHER:
                return
            self._readings.read(offset, unread[:_NEAR_AT_ONCE])
            unread = unread[_NEAR_AT_ONCE:]

    # What was read.

    def _promising(self) -> tuple[int, Window] | None:
        """The best window that is worth reading in full and was not."""

        def is_open(offset: int, window: Window) -> bool:
            return window.p_value <= _PROMISING and (offset, window.first, window.last) not in self._dense

        return self._readings.best(is_open)

    def _z(self, table: VoteTable, message: int, rotation: int) -> float:
        return float(z_scores(table.sums[message : message + 1], self._message)[0, rotation])

    def _is_open(self, table: VoteTable, message: int) -> bool:
        """Whether it is there to be read."""
        if not 0 <= message < table.messages or table.is_read[message] or table.is_masked[message]:
            return False
        return self._messages.is_audible(message)

    def _ahead(self, table: VoteTable, end: int, step: int) -> list[int]:
        """The messages that a mark may go on with after `end`."""
        ahead: list[int] = []
        for m in range(end + step, end + step * (self._max_misses + 2), step):
            if not 0 <= m < table.messages or table.is_masked[m]:
                break
            ahead.append(m)
        return ahead

    def _next_group(self, table: VoteTable, end: int, step: int, rotation: int, core: int) -> int | None:
        """The next message that is read, at most two groups away, if it agrees: far from the core one of each group is
        enough."""
        if (end + step) // self._group == core // self._group or abs(end + step - core) <= _NEAR:
            return None
        for m in range(end + step, end + step * (2 * self._group + 1), step):
            if not 0 <= m < table.messages or table.is_masked[m]:
                return None
            if table.is_read[m]:
                return m if self._z(table, m, rotation) >= _EDGE_Z else None
        return None

    def _fit(self, table: VoteTable, first: int, last: int) -> Fit:
        return fit(table.total(first, last), self._message, self._readings.trials)

    def _mark(self, offset: int, first: int, last: int, result: Fit) -> Mark:
        view, period = self._view, self._period
        begin = first * period
        whole = begin + (result.rotation - begin) % period
        if first == 0 and result.rotation and view.seconds(result.rotation - period, offset) > -view.seconds(1) / 8:
            whole = result.rotation - period  # it begins a hair before the clip
        return Mark(
            self._channel,
            max(0.0, view.seconds(begin, offset - self._hop // 2)),
            view.seconds(min(last * period, view.columns - 1), offset),
            max(0.0, view.seconds(whole, offset)),
            result.share,
            result.threshold,
            view.speed,
            view.keeps_pitch,
        )

    def _describe_other(self, sums: np.ndarray, rotation: int) -> None:
        """A similar key: how far the places that differ agree, which is less than the half that proof takes."""
        margins = vote_margins(sums, self._message, rotation)
        rotated = np.roll(sums, -rotation, axis=0)
        against = np.flatnonzero(margins < 0)
        own = rotated[against, np.array(self._message)[against]]
        self.findings.other_key = True
        self.findings.confidence = float(own.sum() / max(rotated[against].sum(), 1e-9))
        self.findings.threshold = max(0.5, fit(sums, self._message, self._readings.trials).threshold)
        self.findings.decoded_key = symbols_key(vote(sums))


def _spread(count: int) -> list[int]:
    """0 to count - 1, a power of two, each as far as possible from those before it: bits in reverse."""
    bits = count.bit_length() - 1
    return sorted(range(count), key=lambda n: f"{n:0{bits}b}"[::-1])
