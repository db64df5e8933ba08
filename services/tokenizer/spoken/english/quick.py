"""Plain words, which are their own spoken form: told in microseconds."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.abbreviations import TRIGGER
from services.tokenizer.spoken.english.initials import CONSONANTS
from services.tokenizer.spoken.english.shorthand import SHORTHAND

# Words of small letters, the first perhaps a capital, with single blanks and common punctuation between them.
_WORD = r"(?:(?:[A-Z][a-z]+|[a-z]{2,})(?:'[a-z]{1,2})?|I(?:'[a-z]{1,2})?|a|A)"
_WORDS = re.compile(rf"{_WORD}(?:[,;:.!?]? {_WORD})*[.!?]?")
_LETTERS = re.compile(r"[A-Za-z]+")
# Initials in small letters, a Roman one, short names of months and days, units without a number.
_OTHER = re.compile(
    rf"{CONSONANTS}"
    r"|[A-Z][a-z]+ I\b|\b(?:i{2,3}|iv|vi{1,3}|ix|xi{1,3})\b|\b(?:Jan|Feb|Apr|Aug|Sept|Sep|Oct|Nov|Dec)\b|\b(?:Mon|Tues?|Wed|Thu|Thurs?|Fri|Sat|Sun)[,.]?\b"
    r"|\b(?:per|in) (?:kg|km|mL|ml|mph)\b"
)


def is_plain_english(text: str) -> bool:
    """Whether nothing in the text has another reading. False where that is not certain."""
    return (
        _WORDS.fullmatch(text) is not None
        and SHORTHAND.isdisjoint(_LETTERS.findall(text.lower()))
        and TRIGGER.search(text) is None
        and _OTHER.search(text) is None
    )
