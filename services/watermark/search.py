"""Finds the marks of one key in one channel of a piece of audio, in bounded time.

The stock decoder looks for the message's phase by decoding the whole clip at every tenth sample of a hop: 205 times for
the public model. Here a clip is read sparsely first, the loudest of every four messages at a few offsets within a hop.
Marked speech proves its key in one or two messages. Where a stretch seems to hold the key and does not prove it, all of
it is read, and at finer offsets, as far as the budget allows. A mark that is found is followed to both ends; then the
search goes on beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from services.watermark.evidence import MAX_P_VALUE, UNREACHABLE, Fit, contradicts, fit, vote, vote_margins, z_scores
from services.watermark.key import symbols_key
from services.watermark.reader import SymbolReader, View
from services.watermark.votes import VoteTable, Window

GROUP = 4  # messages, of which the first pass reads one
_PROMISING = 0.02  # a window that chance explains better is not worth more reading
_FINEST = 32  # offsets are refined down to hop / 32
_MIN_TRACED = 8  # messages of a mark that are read, if it has as many, before the key is believed
_MAX_REFINED = 8  # messages read at finer offsets
_DESCRIBED = 6  # more messages that are read to tell what a clip spells that does not hold the key
_LOUDER, _PAUSE = 6.0, 200.0  # ratios of power within a group
_EDGE_Z = 3.0  # a message that agrees less is beyond the mark's end; marked speech has 5 to 10
_MAX_MISSES = 2  # messages within a mark that agree less: a pause, or a noise
_EXTRA_SHARE = 0.3  # of a piece's columns that are read beside the first pass
_EXTRA_MESSAGES = 32  # at least


@dataclass(frozen=True)
class Mark:
    """A stretch that carries the key.

    start_s, end_s: to about a message's length. message_s: where its first whole message begins.
    confidence: mean probability of the key's symbols there. threshold: from where that is proof.
    key: which of the keys that were looked for.
    """

    channel: int
    start_s: float
    end_s: float
    message_s: float
    confidence: float
    threshold: float
    speed: float = 1.0
    keeps_pitch: bool = False
    key: int = 0


@dataclass
class Findings:
    """What a search of one piece says. Where no mark is found: the best that was read, and what it spells."""

    marks: list[Mark] = field(default_factory=list)
    confidence: float = 0.0
    threshold: float = UNREACHABLE
    decoded_key: bytes | None = None
    clearness: float = -1.0  # how clearly it spells some message; -1 when nothing is described
    other_key: bool = False  # a key is there that is similar to the one looked for
    audible_messages: int = 0


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
    ):
        """offsets: read per hop at first. views: of the piece that are searched, each of which may err."""
        shape = reader.hparams
        self._reader, self._view, self._message, self._stopped = reader, view, message, stopped
        self._channel, self._views = channel, views
        self._hop, self._period = shape.hop_length, shape.message_len
        self._symbols = shape.message_dim
        self._step = self._hop // offsets
        self._tables: dict[int, VoteTable] = {}
        self._offsets = [self._step * index for index in _spread(offsets)]
        messages = -(-view.columns // self._period)
        self._extra = max(_EXTRA_MESSAGES, int(_EXTRA_SHARE * messages))  # messages that may be read still
        self._dense: set[tuple[int, int, int]] = set()  # offset, first and last message that are read in full
        self._masked: list[tuple[float, float]] = []  # seconds of marks
        self.findings = Findings(audible_messages=int(sum(self._is_audible(m) for m in range(messages))))

    def run(self) -> Findings:
        """Raises: InterruptedError when stopped."""
        on_device = self._reader.device.type != "cpu"
        # An accelerator reads all offsets at once; a CPU saves those that are not needed.
        for offsets in [self._offsets] if on_device else [[offset] for offset in self._offsets]:
            for offset in offsets:
                self._read(offset, self._sparse())
            self._find()
        if not self.findings.marks:
            self._deepen()
        if not self.findings.marks:
            self._describe()
        return self.findings

    def glance(self, everything: bool = False) -> tuple[float, float, float]:
        """The p-value of the best window of a sparse reading, its votes for the key, and the second at its middle.

        everything: read all messages. Raises: InterruptedError when stopped.
        """
        messages = [m for m in range(-(-self._view.columns // self._period)) if self._is_audible(m)]
        for offset in self._offsets:
            self._read(offset, messages if everything else self._sparse())
        best = self._best()
        if best is None:
            return 1.0, 0.0, 0.0
        offset, window = best
        votes = self._tables[offset].total(window.first, window.last)
        middle_s = self._view.seconds((window.first + window.last) / 2 * self._period, offset)
        return window.p_value, fit(votes, self._message).share, middle_s

    # The stages.

    def _find(self) -> None:
        """Follow every significant window, the best first."""
        while (best := self._best()) is not None and self._is_significant(best[1]):
            offset, window = best
            self._trace(offset, window)

    def _deepen(self) -> None:
        """Read all of the promising windows, then at finer offsets, until one is proof or the budget is spent."""
        while self._extra > 0:
            promising = self._promising()
            if promising is None:
                return
            offset, window = promising
            self._dense.add((offset, window.first, window.last))
            margin = 2 if window.last - window.first < GROUP else 0
            self._read_extra(offset, range(window.first - margin, window.last + margin))
            step = self._step
            while (best := self._best()) is not None and not self._is_significant(best[1]):
                step //= 2
                offset, window = best
                if step * _FINEST < self._hop or window.p_value > _PROMISING or self._extra <= 0:
                    break
                middle = (window.first + window.last) // 2
                near = range(
                    max(window.first, middle - _MAX_REFINED // 2), min(window.last, middle + _MAX_REFINED // 2)
                )
                for finer in ((offset - step) % self._hop, (offset + step) % self._hop):
                    self._read_extra(finer, near)
            self._find()
            if self.findings.marks:
                return

    def _trace(self, offset: int, window: Window) -> None:
        """Follow a mark to both ends, and believe it if all of its votes are for the key. Masks its messages."""
        table, rotation = self._tables[offset], window.rotation
        inside = [m for m in range(window.first, window.last) if table.is_read[m] and not table.is_masked[m]]
        core = max(inside, key=lambda m: self._z(table, m, rotation))
        first, last = core, core + 1
        for step in (-1, 1):
            misses, at = 0, core
            while misses <= _MAX_MISSES:
                at += step
                if not 0 <= at < table.messages or table.is_masked[at]:
                    break
                # Far from the core one message in each group is enough.
                near_group = at // GROUP != core // GROUP and abs(at - core) > _MIN_TRACED
                if not table.is_read[at] and near_group and self._group_agrees(table, at, step, rotation):
                    first, last, misses = min(first, at), max(last, at + 1), 0
                    continue
                if not self._is_audible(at):
                    misses += 1
                    continue
                if not table.is_read[at]:
                    self._read(offset, [at])
                if self._z(table, at, rotation) >= _EDGE_Z:
                    first, last, misses = min(first, at), max(last, at + 1), 0
                else:
                    misses += 1
        sums = table.total(first, last)
        result = fit(sums, self._message, self._trials)
        if not result.significant:
            first, last = window.first, window.last
            sums = table.total(first, last)
            result = fit(sums, self._message, self._trials)
        other = contradicts(sums, self._message, result.rotation)
        if other and not self.findings.marks:
            self._describe_other(sums, result)
        if not other and result.significant:
            self.findings.marks.append(self._mark(offset, first, last, result))
        seconds = [self._view.seconds(m * self._period) for m in (first, last)]
        for each in self._tables.values():
            each.mask(first, last)
        self._masked.append((seconds[0], seconds[1]))

    # What was read.

    @property
    def _trials(self) -> int:
        """Windows that are tested in all: each is a chance to agree by accident."""
        return self._views * sum(len(table.windows()) for table in self._tables.values())

    def _is_significant(self, window: Window) -> bool:
        return window.p_value * self._trials <= MAX_P_VALUE

    def _best(self) -> tuple[int, Window] | None:
        return self._best_of(lambda offset, window: True)

    def _promising(self) -> tuple[int, Window] | None:
        """The best window that is worth reading in full and was not."""

        def is_open(offset: int, window: Window) -> bool:
            return window.p_value <= _PROMISING and (offset, window.first, window.last) not in self._dense

        return self._best_of(is_open)

    def _best_of(self, condition: Callable[[int, Window], bool]) -> tuple[int, Window] | None:
        windows = [(offset, table.best(self._message)) for offset, table in self._tables.items()]
        known = [(offset, window) for offset, window in windows if window is not None and condition(offset, window)]
        return min(known, key=lambda each: each[1].p_value, default=None)

    def _z(self, table: VoteTable, message: int, rotation: int) -> float:
        return float(z_scores(table.sums[message : message + 1], self._message)[0, rotation])

    def _group_agrees(self, table: VoteTable, at: int, step: int, rotation: int) -> bool:
        """Whether the next message that is read, at most a group away, agrees."""
        for m in range(at, at + step * GROUP * 2, step):
            if not 0 <= m < table.messages or table.is_masked[m]:
                return False
            if table.is_read[m]:
                return self._z(table, m, rotation) >= _EDGE_Z
        return False

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

    def _describe(self) -> None:
        """The best that was read, where nothing is found, and what the clearest of it spells."""
        if self.findings.other_key or not self._tables:
            return
        (clearness, first, last), offset = max((table.clearest(), offset) for offset, table in self._tables.items())
        self._extra = max(self._extra, _DESCRIBED)
        self._read_extra(offset, range(first - _DESCRIBED // 2, last + _DESCRIBED // 2))
        clearness, first, last = self._tables[offset].clearest()
        self.findings.clearness = clearness
        self.findings.decoded_key = symbols_key(vote(self._tables[offset].total(first, last)))
        if (best := self._best()) is not None:
            offset, window = best
            result = fit(self._tables[offset].total(window.first, window.last), self._message, self._trials)
            self.findings.confidence, self.findings.threshold = result.share, result.threshold

    def _describe_other(self, sums: np.ndarray, result: Fit) -> None:
        """A similar key: how far the places that differ agree, which is less than the half that proof takes."""
        margins = vote_margins(sums, self._message, result.rotation)
        rotated = np.roll(sums, -result.rotation, axis=0)
        against = np.flatnonzero(margins < 0)
        own = rotated[against, np.array(self._message)[against]]
        self.findings.other_key = True
        self.findings.confidence = float(own.sum() / rotated[against].sum())
        self.findings.threshold = max(0.5, result.threshold)
        self.findings.decoded_key = symbols_key(vote(sums))

    # Reading.

    def _is_audible(self, message: int) -> bool:
        first, last = self._hops(message)
        return bool(self._view.audible[first:last].any())

    def _is_marked(self, message: int) -> bool:
        """Whether a mark was found there."""
        middle_s = self._view.seconds((message + 0.5) * self._period)
        return any(start_s <= middle_s < end_s for start_s, end_s in self._masked)

    def _hops(self, message: int) -> tuple[int, int]:
        """Hops of samples under a message."""
        scale = self._view.hop / self._hop
        first = int(message * self._period * scale)
        return first, max(first + 1, int((message + 1) * self._period * scale))

    def _sparse(self) -> list[int]:
        """The loudest message of each group, and the loudest of those next to much louder sound; marks left out."""
        messages = -(-self._view.columns // self._period)
        chosen = []
        for first in range(0, messages, GROUP):
            group = [m for m in range(first, min(messages, first + GROUP)) if not self._is_marked(m)]
            if not group:
                continue
            loudness = np.array([float(self._view.power[slice(*self._hops(m))].sum()) for m in group])
            # Next to louder sound the quieter may be what is marked; what is quieter still is a pause.
            quieter = np.where(
                (loudness < loudness.max() / _LOUDER) & (loudness > loudness.max() / _PAUSE), loudness, 0
            )
            for level in (loudness, quieter):
                m = group[int(level.argmax())]
                if level.max() > 0 and self._is_audible(m):
                    chosen.append(m)
        return sorted(chosen)

    def _read_extra(self, offset: int, messages: range) -> None:
        table = self._tables.get(offset)
        wanted = [
            m
            for m in messages
            if 0 <= m * self._period < self._view.columns
            and self._is_audible(m)
            and (table is None or not table.is_read[m])
        ][: max(0, self._extra)]
        self._extra -= len(wanted)
        self._read(offset, wanted)

    def _read(self, offset: int, messages: list[int]) -> None:
        """Read these messages, neighbours together."""
        if offset not in self._tables:
            self._tables[offset] = table = VoteTable(self._view.columns, self._period, self._symbols)
            for start_s, end_s in self._masked:
                length_s = self._view.seconds(self._period)
                table.mask(int(start_s / length_s + 0.5), int(end_s / length_s + 0.5))
        table = self._tables[offset]
        runs = list(_runs(messages))
        stretches = [(first * self._period, (last - first) * self._period) for first, last in runs]
        for (first, last), probabilities in zip(
            runs, self._reader.read(self._view, offset, stretches, self._stopped), strict=True
        ):
            beyond = max(0, last * self._period - self._view.columns)
            probabilities = probabilities[:, : probabilities.shape[1] - beyond]
            for m in range(first, last):
                start = (m - first) * self._period
                table.add(m, probabilities[:, start : start + self._period])


def _runs(messages: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring messages as (first, last), last exclusive, GROUP * 2 at most."""
    first = None
    for index, message in enumerate(messages):
        if first is None:
            first = message
        last = index == len(messages) - 1
        if last or messages[index + 1] != message + 1 or message + 1 - first == 2 * GROUP:
            yield first, message + 1
            first = None


def _spread(count: int) -> list[int]:
    """0 to count - 1, a power of two, each as far as possible from those before it: bits in reverse."""
    bits = count.bit_length() - 1
    return sorted(range(count), key=lambda n: f"{n:0{bits}b}"[::-1])
