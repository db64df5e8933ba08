"""The text of one turn as it comes in, and the units that are taken from it, as soon as one is certain or must be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.speech.units import UnitCutter, UnitLimits


@dataclass(frozen=True)
class TextWaits:
    """Seconds. sentence_s: after what looks like a sentence's end, for text that shows that it is none. first_s: after
    the last word, before a turn's first unit is taken although no sentence or clause has ended."""

    sentence_s: float = 0.06
    first_s: float = 0.4


class TextSource:
    """`append` and `flush` from the caller's side; `next_unit` from the speaker's."""

    def __init__(self, limits: UnitLimits, language: str, waits: TextWaits):
        self._cutter, self._waits, self._bridge_words = UnitCutter(limits, language), waits, limits.first_clause_words
        self._changed = asyncio.Event()

    def append(self, text: str) -> None:
        """More of the turn's text."""
        self._cutter.append(text)
        self._changed.set()

    def flush(self) -> None:
        """The text is complete."""
        self._cutter.flush()
        self._changed.set()

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

    def hurry(self) -> None:
        """The listener waits: the next unit may be as short as a turn's first one."""
        self._cutter.first = True

    async def next_unit(self, patience_s: float | None) -> str | None:
        """The next unit. None: the text is done, or nothing speakable has come for `patience_s`.

        patience_s: None waits for ever. When it is over, a few whole words that are here make a unit.
        """
        loop = asyncio.get_running_loop()
        ends_s = None if patience_s is None else loop.time() + patience_s
        while True:
            self._changed.clear()
            unit = self._cutter.take()
            if unit is not None or self._cutter.done:
                return unit
            waits = [] if ends_s is None else [ends_s - loop.time()]
            if self._cutter.ends_sentence():
                waits.append(self._waits.sentence_s)
            elif self._cutter.first and self._cutter.pending:
                waits.append(self._waits.first_s)
            try:
                async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                    await self._changed.wait()
            except TimeoutError:
                # One word is worth saying when nothing else is to be heard, not to bridge a gap.
                unit = self._cutter.take(1 if self._cutter.first else self._bridge_words)
                if unit is not None or (ends_s is not None and loop.time() >= ends_s):
                    return unit
                if not waits or ends_s is None:
                    # Half a word, or signs alone: only more text helps.
                    await self._changed.wait()
