"""Cuts text that arrives in pieces into units, each spoken by one generation.

A unit is one sentence, several short ones, or part of a long one. Sentences are found by sentencex, Wikimedia's
segmenter. Nothing of the text is lost: the units joined are the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import sentencex

_TERMINAL = re.compile(r"[.!?…。！？]['\"”’)\]»]*\s*$")
_SURE = re.compile(r"(?:[!?…。！？]['\"”’)\]»]*|[.!?…。！？]['\"”’)\]»]*\s+)$")  # nothing that follows can continue it
_CLAUSE = re.compile(r"(?:[,;:]['\"”’)\]»]*|\s[-–—]|—)(?=\s)")
# Before its white space has come, so only after a plain word: no "1," of "1,000", nor one of "f(x,y)" or of an address.
_CLAUSE_AT_END = re.compile(r"(?:^|\s)['\"“‘(\[«]*[^\W\d_](?:[\w'’-]*[^\W\d_])?[,;]['\"”’)\]»]*$")
_WORD = re.compile(r"\w")
_CLAUSE_WORDS = 2  # of a unit that ends at a clause, at least
# A tag or a Markdown link that is not closed yet: cut in two, its signs and address would be read out.
_OPEN_MARKUP = re.compile(r"(?:<[A-Za-z/!][^<>]{0,100}|\[[^\[\]]{0,200}(?:\](?:\([^()\s]{0,200})?)?)$")
_LIST_MARKER = re.compile(r"\W*(?:\d+|[^\W\d_])\.\s*")  # "1. ", "A. ": spoken with what it numbers
_NUMBER_OR_INITIAL = re.compile(r"(?:\d|\b\w)\.$")
_PROBE = " and"  # goes on after an abbreviation ("Dr. and"), and begins a sentence after anything else


@dataclass(frozen=True)
class UnitLimits:
    """Lengths in characters.

    max_chars: the longest unit. join_chars: sentences are joined while the unit is shorter than this, since short ones
    are spoken better together; the first unit of a turn, which a listener waits for, takes only those that are here,
    but no list's "1." alone. first_chars: that unit may end at a clause from here on.
    """

    max_chars: int = 200
    join_chars: int = 40
    first_chars: int = 12


class UnitCutter:
    """The text of one turn. `append` it, `flush` at its end, and `take` units as they become certain.

    first: the next unit is one that the listener waits for.
    """

    def __init__(self, limits: UnitLimits, language: str = "en"):
        """language: ISO 639-1, as sentencex takes it."""
        self.limits, self._language = limits, language
        self._text = ""
        self.flushed = False
        self.first = True

    def append(self, text: str) -> None:
        """More of the turn's text, cut anywhere."""
        self._text += text

    def flush(self) -> None:
        """The text is complete."""
        self.flushed = True

    def drop(self) -> None:
        """Forget what no unit has taken."""
        self._text = ""

    @property
    def pending(self) -> str:
        """Text that no unit has taken yet."""
        return self._text

    @property
    def done(self) -> bool:
        """The text is complete and every unit of it is taken."""
        return self.flushed and not self._text

    def take(self, *, join: bool = True, force_words: int | None = None) -> str | None:
        """The next unit, or None while it is not certain where it ends. White space after a unit belongs to it.

        join: wait until short sentences can be joined; not for a first unit. force_words: wait for nothing; a clause or
        so many whole words make a unit.
        """
        forced = force_words is not None
        end = self._sentences_end(join=join and not forced)
        if end is None:
            end = self._clause_end(force_words)
        if end is None and force_words is not None:
            end = self._whole_words(self._window(), force_words)
        if end is None:
            return None
        end = self._outside_markup(self._fitting(end), forced=forced)
        if end is None:
            return None
        unit, self._text = self._text[:end], self._text[end:]
        self.first = False
        return unit

    def _sentences_end(self, *, join: bool) -> int | None:
        """End of the sentences that make a unit, as far as they are certain."""
        window = self._window()
        if not _WORD.search(window):
            # Spaces and signs alone make a unit only where nothing else will come, or when there are very many.
            return len(self._text) if self.flushed and self._text else len(window) if self._text != window else None
        end, full = 0, False
        for sentence, certain in self._sentences(window):
            full = bool(end) and (end >= self.limits.join_chars or end + len(sentence) > self.limits.max_chars)
            if full or not certain:
                break
            end += len(sentence)
        waits = _is_list_marker(window[:end]) if self.first else join and end < self.limits.join_chars
        if full or not waits or (self.flushed and end == len(self._text)):
            return end or None
        return None

    def _clause_end(self, force_words: int | None) -> int | None:
        """End of a clause, where sentences are too long or the listener waits."""
        window, waits = self._window(), self.first or force_words is not None
        too_long = len(window) > self.limits.max_chars
        if not (too_long or (waits and not self.ends_sentence())) or not _WORD.search(window):
            return None
        at_once = self.first and force_words is None
        least = self.limits.first_chars if at_once else 0
        words = _CLAUSE_WORDS if force_words is None else force_words
        ends = [match.end() for match in _CLAUSE.finditer(window, 0, self.limits.max_chars)]
        is_short = len(window) < self.limits.max_chars
        if at_once and is_short and _CLAUSE_AT_END.search(window) and not _in_quotation(window):
            ends.append(len(window))
        ends = [end for end in ends if end >= least and len(window[:end].split()) >= words]
        if ends:
            return _past_space(window, ends[0] if at_once else ends[-1])
        return len(window) if too_long else None

    def _window(self) -> str:
        """The beginning of the text, long enough for any unit: segmenting costs time by the character."""
        return self._text[: 2 * self.limits.max_chars]

    def _sentences(self, window: str) -> Iterator[tuple[str, bool]]:
        """The window's sentences, and whether each surely ends there."""
        sentences = list(sentencex.segment(self._language, window))
        if "".join(sentences) != window:  # a segmenter that drops white space would lose text
            sentences = [window]
        whole = self.flushed and len(window) == len(self._text)
        for sentence in sentences[:-1]:
            yield sentence, True
        last = sentences[-1]
        yield last, whole or self._surely_ends(last)

    def _surely_ends(self, sentence: str) -> bool:
        if not _SURE.search(sentence) or (not sentence[-1].isspace() and _in_quotation(sentence)):
            return False
        return len(list(sentencex.segment(self._language, sentence.rstrip() + _PROBE))) > 1

    def ends_sentence(self) -> bool:
        """Whether the text that is here looks like whole sentences, so that a short wait decides it."""
        return _TERMINAL.search(self._text) is not None

    def may_go_on(self) -> bool:
        """Whether what looks like a sentence's end is likely to be none: "Dr.", "3." before its decimals, "1. " of a list."""
        text = self._text.rstrip()
        return (
            _is_list_marker(text)
            or (text == self._text and _NUMBER_OR_INITIAL.search(text) is not None)
            or not self._surely_ends(text[-2 * self.limits.max_chars :] + " ")
        )

    def _whole_words(self, window: str, count: int) -> int | None:
        if self.flushed or self.ends_sentence():
            return len(window)
        cut = max((match.end() for match in re.finditer(r"\s+", window)), default=0)
        words = window[:cut].split()
        return cut if len(words) >= count and _WORD.search(window[:cut]) else None

    def _outside_markup(self, end: int, *, forced: bool) -> int | None:
        """`end`, or the beginning of the markup that it would cut; None while the rest of that may still come."""
        if self.flushed and end == len(self._text):
            return end
        markup = _OPEN_MARKUP.search(self._text, max(0, end - self.limits.max_chars), end)
        if markup is None:
            return end
        waits = not self.flushed and len(self._text) <= self.limits.max_chars
        if waits and not forced:
            return None
        if _WORD.search(self._text, 0, markup.start()):
            return markup.start()
        return None if waits else end

    def _fitting(self, end: int) -> int:
        """`end`, or the last good place before it when the unit would be too long."""
        limit = self.limits.max_chars
        if end <= limit:
            return end
        head = self._text[: limit + 1]
        clauses = [match.end() for match in _CLAUSE.finditer(head)]
        spaces = [match.start() for match in re.finditer(r"\s", head)]
        for cuts in (clauses, spaces):
            if cuts and cuts[-1] >= limit // 3:
                return min(_past_space(head, cuts[-1]), limit)
        return limit


def _is_list_marker(text: str) -> bool:
    return _LIST_MARKER.fullmatch(text) is not None


def _in_quotation(text: str) -> bool:
    """Whether a closing quotation mark is likely to come next, which belongs to the words before it."""
    return text.count('"') % 2 == 1 or text.count("“") > text.count("”") or text.count("«") > text.count("»")


def _past_space(text: str, index: int) -> int:
    while index < len(text) and text[index].isspace():
        index += 1
    return index
