"""The text of one turn as it comes in, and the units that are taken from it, as soon as one is certain or must be."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass

from gateway.speech.ending import words_s
from gateway.speech.units import UnitCutter, UnitLimits


@dataclass(frozen=True)
class TextWaits:
    """Seconds. sentence_s: after what looks like a sentence's end, for text that shows that it is none. first_s: after
    the last word, before a turn's first unit is taken although no sentence or clause has ended."""

    sentence_s: float = 0.06
    first_s: float = 0.4


_BURST_S = 0.01  # between pieces that were sent together, at most
_BRIDGE_WORDS = 3  # that a unit has at least which only bridges a gap


class TextSource:
    """`append` and `flush` from the caller's side; `next_unit` from the speaker's."""

    def __init__(self, limits: UnitLimits, language: str, waits: TextWaits):
        self._cutter, self._waits = UnitCutter(limits, language), waits
        self._changed = asyncio.Event()
        self._hash, self.characters = hashlib.sha256(), 0  # of all there was
        self._appended_s: float | None = None  # when text came last
        self._speech_s = 0.0
        self.changed_s = time.perf_counter()  # when text, or its end, came last
        self._gap_s = 0.0  # between pieces of text, about

    @property
    def sha256(self) -> str:
        """Of the text so far, as it came (UTF-8), in hex."""
        return self._hash.hexdigest()

    def append(self, text: str) -> None:
        """More of the turn's text."""
        self.changed_s = time.perf_counter()
        self._hash.update(text.encode())
        self.characters += len(text)
        if self._appended_s is not None:
            gap_s = self.changed_s - self._appended_s
            self._gap_s = (self._gap_s + gap_s) / 2 if self._gap_s else gap_s
        self._appended_s = self.changed_s
        self._speech_s += words_s(text)
        self._cutter.append(text)
        self._changed.set()

    def flush(self) -> None:
        """The text is complete."""
        if not self._cutter.flushed:
            self.changed_s = time.perf_counter()
        self._cutter.flush()
        self._changed.set()

    def drop(self) -> None:
        """Nothing more of it is spoken: forget what no unit has taken."""
        self._cutter.drop()
        self.flush()

    @property
    def flushed(self) -> bool:
        """Whether the text is complete."""
        return self._cutter.flushed

    @property
    def done(self) -> bool:
        """The text is complete and all its units are taken."""
        return self._cutter.done

    @property
    def pending(self) -> int:
        """Characters that no unit has taken yet."""
        return len(self._cutter.pending)

    def speech_s(self) -> float:
        """Seconds that all text that came so far is likely to take."""
        return self._speech_s

    def fit(self, limits: UnitLimits) -> None:
        """Cut what comes by other limits."""
        self._cutter.limits = limits

    def hurry(self) -> None:
        """The listener waits: the next unit may be as short as a turn's first one."""
        self._cutter.first = True

    async def next_unit(self, patience_s: float | None, join_s: float = 0.0) -> str | None:
        """The next unit. None: the text is done, or nothing speakable has come for `patience_s`.

        patience_s: None waits for ever. When it is over, a few whole words that are here make a unit. join_s: how long
        a sentence may wait for others to be joined with it; not a turn's first.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        ends_s = None if patience_s is None else began_s + patience_s
        while True:
            self._changed.clear()
            now_s, first = loop.time(), self._cutter.first
            joining_s = 0.0 if first else began_s + join_s - now_s
            unit = self._cutter.take(join=first or joining_s > 0)
            if unit is not None or self._cutter.done:
                return unit
            waits = [] if ends_s is None else [ends_s - now_s]
            if joining_s > 0:
                waits.append(joining_s)
            elif self._cutter.ends_sentence():
                waits.append(self._sentence_wait_s())
            elif first and self._cutter.pending:
                waits.append(self._waits.first_s)
            try:
                async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                    await self._changed.wait()
            except TimeoutError:
                if joining_s > 0 and (ends_s is None or loop.time() < ends_s):
                    continue
                # One word is worth saying when nothing else is to be heard, not to bridge a gap.
                unit = self._cutter.take(force_words=1 if first else _BRIDGE_WORDS)
                if unit is not None or (ends_s is not None and loop.time() >= ends_s):
                    return unit
                if not waits or ends_s is None:
                    # Half a word, or signs alone: only more text helps.
                    await self._changed.wait()

    def _sentence_wait_s(self) -> float:
        """For text that shows that a sentence goes on. While the listener waits, only for the rest of a burst where
        pieces come too slowly for that."""
        wait_s = self._waits.sentence_s
        if self._cutter.may_go_on():
            return max(wait_s, min(2 * self._gap_s, self._waits.first_s))
        return min(wait_s, _BURST_S) if self._cutter.first and self._gap_s > wait_s else wait_s
