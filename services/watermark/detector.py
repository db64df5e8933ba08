"""Looks for a key in clips of any length and any number of channels, piece by piece, in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from services.watermark.evidence import UNREACHABLE
from services.watermark.findings import Findings, Mark
from services.watermark.key import check_key, key_symbols
from services.watermark.messages import group_size
from services.watermark.reader import SymbolReader
from services.watermark.search import Search
from services.watermark.speeds import VIEWS, Speed, search_speeds, view_at
from services.watermark.weights import Nets

OFFSETS = 8  # read per hop where nothing is known of the decoder
_FINEST = 32
_MAX_RATE_HZ = 384000
PIECE_S = 60.0  # searched at once; a false alarm's chance is bounded for each
_MIN_PIECE_S = 10.0
_PIECE_VALUES_S = 96000  # samples of all channels per second from which on pieces are shorter: memory is bounded
_OVERLAP_MESSAGES = 6  # of neighbouring pieces, so that a mark on their border is whole in one


class Verdict(Enum):
    """What a search says."""

    FOUND = auto()
    NOT_FOUND = auto()
    TOO_SHORT = auto()  # not found, in fewer audible messages than prove something
    SILENT = auto()
    OTHER_KEY = auto()  # a mark is there whose key is similar to the one looked for
    LIMITED = auto()  # not found in the part that was searched before a limit ended the search


@dataclass(frozen=True)
class Detection:
    """What was found.

    found: whether the key is there beyond chance (see evidence.py).
    confidence: how far the columns read agree with the key, as the mean probability of its symbols.
    threshold: from where that is proof. Of the first mark, or else of the best window.
    decoded_key: what those columns spell, all taken together; None when they spell no key.
    position_s: where the first whole message begins; None unless found.
    marks: in order of time. searched_s: of duration_s, how much was searched. limited: whether a limit ended the search.
    speeds: whether other speeds were searched too.
    """

    found: bool
    confidence: float
    threshold: float
    decoded_key: bytes | None
    position_s: float | None
    verdict: Verdict = Verdict.NOT_FOUND
    marks: list[Mark] = field(default_factory=list)
    duration_s: float = 0.0
    searched_s: float = 0.0
    limited: bool = False
    speeds: bool = False


class Detector:
    """Looks for keys with one model's nets. Holds nothing of any clip; threads may share it."""

    def __init__(self, nets: Nets, *, max_seconds: float = 60.0, offsets: int = OFFSETS):
        """offsets: places within a hop at which columns are read. A decoder that was trained on clips
        cut at any sample needs two; one that was not may read nothing a quarter of a hop beside its columns.

        Raises: ValueError when offsets is out of bounds.
        """
        if not 1 <= offsets <= _FINEST or offsets & (offsets - 1):
            raise ValueError(f"offsets is {offsets}, must be a power of two, at most {_FINEST}")
        self.hparams = nets.hparams
        self.max_seconds = max_seconds
        self.offsets = offsets
        self.reader = SymbolReader(nets)

    def detect(
        self,
        samples: NDArray[np.float32],
        sample_rate_hz: int,
        key: bytes | Sequence[bytes],
        stopped: Callable[[], bool] = lambda: False,
        *,
        speeds: bool = False,
        time_limit_s: float | None = None,
    ) -> Detection:
        """Look for `key` in audio [n], or [n, channels]. Several keys are looked for one after another, until one is found.

        stopped: asked between passes of the decoder; when it says True the search is given up.
        speeds: search other speeds where the plain search finds no mark. time_limit_s: of the search.

        Raises: ValueError naming field and limit when the clip is too long or not finite, or the key
        has another length; InterruptedError when stopped.
        """
        audio = np.asarray(samples, np.float32)
        if audio.ndim not in (1, 2):
            raise ValueError(f"audio has {audio.ndim} dimensions, must have 1 or 2")
        audio = audio[:, None] if audio.ndim == 1 else audio
        session = self.open(sample_rate_hz, audio.shape[1], key, stopped, speeds=speeds, time_limit_s=time_limit_s)
        seconds = len(audio) / sample_rate_hz
        if seconds > self.max_seconds:
            raise ValueError(f"audio is {seconds:.1f} s, must be at most {self.max_seconds:g} s")
        session.add(audio)
        return session.finish()

    def open(
        self,
        sample_rate_hz: int,
        channels: int,
        key: bytes | Sequence[bytes],
        stopped: Callable[[], bool] = lambda: False,
        *,
        speeds: bool = False,
        time_limit_s: float | None = None,
    ) -> DetectionSession:
        """A search through audio that comes in pieces, of any length. Raises: ValueError, as `detect` does."""
        keys = [key] if isinstance(key, bytes) else key
        messages = [key_symbols(check_key(each, self.hparams.key_bytes)) for each in keys]
        if not 1 <= sample_rate_hz <= _MAX_RATE_HZ:
            raise ValueError(f"sample_rate_hz is {sample_rate_hz}, must be 1 to {_MAX_RATE_HZ}")
        return DetectionSession(self, sample_rate_hz, channels, messages, stopped, speeds, time_limit_s)


class DetectionSession:
    """One search. Not thread-safe."""

    def __init__(
        self,
        detector: Detector,
        rate_hz: int,
        channels: int,
        messages: Sequence[list[int]],
        stopped: Callable[[], bool],
        speeds: bool,
        time_limit_s: float | None,
    ):
        self._detector, self._rate_hz, self._messages, self._stopped = detector, rate_hz, messages, stopped
        self._speeds, self._time_limit_s = speeds, time_limit_s
        piece_s = max(_MIN_PIECE_S, min(PIECE_S, PIECE_S * _PIECE_VALUES_S / (rate_hz * channels)))
        self._piece = round(piece_s * rate_hz)
        self._overlap = min(self._piece // 4, round(_OVERLAP_MESSAGES * detector.hparams.message_seconds * rate_hz))
        self._added: list[NDArray[np.float32]] = []
        self._added_samples = 0
        self._waiting = np.zeros((0, channels), np.float32)  # to be searched; with those added, less than two pieces
        self._start = 0  # samples before those that wait
        self._fresh = 0  # of those that wait, how many no piece has held
        self._worked_s = 0.0
        self._searched = 0  # samples
        self._findings = Findings()
        self._audible = [0] * channels
        self.limited = False

    @property
    def searched_s(self) -> float:
        """Seconds of the clip that were searched."""
        return self._searched / self._rate_hz

    @property
    def marks(self) -> list[Mark]:
        """Marks found so far, in order of time."""
        return _merged(self._findings.marks, self._detector.hparams.message_seconds)

    def add(self, samples: NDArray[np.float32]) -> bool:
        """Take audio [n, channels]; whether a piece is complete, for `search`.

        Raises: ValueError when it is not finite.
        """
        if not np.isfinite(samples).all():
            raise ValueError("audio must be finite, found NaN or infinity")
        self._added.append(samples)
        self._added_samples += len(samples)
        return len(self._waiting) + self._added_samples >= 2 * self._piece

    def search(self) -> None:
        """Search the pieces that are complete. Raises: InterruptedError when stopped."""
        self._join()
        while len(self._waiting) >= 2 * self._piece:
            self._search(self._piece)

    def finish(self) -> Detection:
        """Search the rest; the session is over. Raises: InterruptedError when stopped."""
        self._join()
        while self._fresh:
            self._search(self._piece if len(self._waiting) > 1.25 * self._piece else len(self._waiting))
        findings, marks = self._findings, self.marks
        detection = self._detection(findings, marks)
        return replace(
            detection,
            duration_s=(self._start + len(self._waiting)) / self._rate_hz,
            searched_s=self.searched_s,
            limited=self.limited,
            speeds=self._speeds,
        )

    def _join(self) -> None:
        self._waiting = np.concatenate([self._waiting, *self._added])
        self._fresh += self._added_samples
        self._added, self._added_samples = [], 0

    def _detection(self, findings: Findings, marks: list[Mark]) -> Detection:
        if marks:
            first = marks[0]
            return Detection(
                True, first.confidence, first.threshold, self._key(first.key), first.message_s, Verdict.FOUND, marks
            )
        audible = max(self._audible, default=0)
        if self.limited:
            verdict = Verdict.LIMITED
        elif findings.other_key:
            verdict = Verdict.OTHER_KEY
        elif not audible:
            verdict = Verdict.SILENT
        elif audible < group_size(self._detector.hparams):
            verdict = Verdict.TOO_SHORT
        else:
            verdict = Verdict.NOT_FOUND
        threshold = findings.threshold if audible else UNREACHABLE
        return Detection(False, findings.confidence, threshold, findings.decoded_key, None, verdict)

    def _key(self, number: int) -> bytes:
        symbols = [symbol - 1 for symbol in self._messages[number][:-1]]
        quads = [symbols[at : at + 4] for at in range(0, len(symbols), 4)]
        return bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in quads)

    def _search(self, count: int) -> None:
        """Search the first `count` samples that wait, and keep their end for the piece that follows."""
        piece, start_s = self._waiting[:count], self._start / self._rate_hz
        is_last = count == len(self._waiting)
        if not self.limited:
            began_s = time.perf_counter()
            try:
                for channel in range(piece.shape[1]):
                    if any(np.array_equal(piece[:, channel], piece[:, earlier]) for earlier in range(channel)):
                        continue
                    self._search_channel(np.ascontiguousarray(piece[:, channel]), channel, start_s, began_s)
                self._searched = self._start + count
            except _LimitReached:
                self.limited = True
            self._worked_s += time.perf_counter() - began_s
        done = count if is_last else count - self._overlap
        self._waiting = self._waiting[done:]
        self._start += done
        self._fresh = 0 if is_last else len(self._waiting) - self._overlap

    def _search_channel(self, samples: NDArray[np.float32], channel: int, start_s: float, began_s: float) -> None:
        detector = self._detector

        def stopped() -> bool:
            if self._stopped():
                return True
            limit_s = self._time_limit_s
            if limit_s is not None and self._worked_s + time.perf_counter() - began_s > limit_s:
                raise _LimitReached
            return False

        view = view_at(detector.reader, samples, self._rate_hz, Speed(1.0, False))
        for number, message in enumerate(self._messages):
            search = Search(
                detector.reader,
                view,
                message,
                channel=channel,
                offsets=detector.offsets,
                views=(VIEWS if self._speeds else 1) * len(self._messages),  # each may err
                stopped=stopped,
            )
            if number == 0:
                newest = search
                self._audible[channel] += search.findings.audible_messages
            try:
                search.run(describes=not self._speeds)
            finally:
                self._take(search.findings, start_s, number)
            if search.findings.marks:
                return
        if not self._speeds or not search.findings.audible_messages:
            return
        for number, message in enumerate(self._messages):
            found = search_speeds(
                detector.reader,
                samples,
                self._rate_hz,
                message,
                channel=channel,
                offsets=detector.offsets,
                stopped=stopped,
                keys=len(self._messages),
            )
            self._take(found, start_s, number)
            if found.marks:
                return
        newest.describe()
        self._take(newest.findings, start_s, 0)

    def _take(self, found: Findings, start_s: float, number: int) -> None:
        """Add what a piece holds of key `number`. What is said where none is found is of the first, the newest."""
        all_found = self._findings
        all_found.marks += [
            replace(
                mark,
                start_s=mark.start_s + start_s,
                end_s=mark.end_s + start_s,
                message_s=mark.message_s + start_s,
                key=number,
            )
            for mark in found.marks
        ]
        if number:
            return
        if (found.other_key and not all_found.other_key) or found.clearness > all_found.clearness:
            if found.other_key or not all_found.other_key:
                all_found.confidence, all_found.threshold = found.confidence, found.threshold
                all_found.decoded_key = found.decoded_key
            all_found.other_key |= found.other_key
            all_found.clearness = max(found.clearness, all_found.clearness)


class _LimitReached(Exception):
    """The time limit of the search."""


def _merged(marks: list[Mark], message_s: float) -> list[Mark]:
    """In order of time; what two pieces hold of one mark is one."""
    merged: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.channel, mark.start_s)):
        last = merged[-1] if merged else None
        if (
            last is not None
            and (last.channel, last.key) == (mark.channel, mark.key)
            and abs(last.speed - mark.speed) < 0.01
            and mark.start_s <= last.end_s + message_s
            and _same_phase(last, mark, message_s)
        ):
            merged[-1] = replace(last, end_s=max(last.end_s, mark.end_s))
        else:
            merged.append(mark)
    return sorted(merged, key=lambda mark: (mark.start_s, mark.channel))


def _same_phase(one: Mark, other: Mark, message_s: float) -> bool:
    """Whether both count messages from the same beginning; at another speed the count drifts."""
    if one.speed != 1 or other.speed != 1:
        return True
    phase = (other.message_s - one.message_s) / message_s % 1
    return min(phase, 1 - phase) < 0.06
