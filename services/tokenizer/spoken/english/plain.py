"""What is left when every kind has been read: ordinals, years and bare numbers."""

from __future__ import annotations

import re

from services.tokenizer.spoken.english.numbers import NUMBER, cardinal, digits, number, ordinal, year

_ORDINAL = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d+)(?:st|nd|rd|th|ST|ND|RD|TH)\b")
_DECIMAL_ORDINAL = re.compile(r"(?<![\w.])(\d+\.\d*)(\d)(?:st|nd|rd|th)\b")
_FOUR = re.compile(r"(?<![\w.,])(10[1-9]\d|1[1-9]\d\d|20\d\d)(?![\w]|[.,]\d)")
_COUNTED = re.compile(
    r"\s+(?:more\s|other\s|new\s|different\s|additional\s|total\s|active\s|free\s)?(?!was\b|is\b|has\b|his\b|this\b|as\b|its\b|us\b|yes\b|plus\b|"
    r"Olympics\b|elections?\b|across\b|versus\b|perhaps\b|always\b|unless\b|thus\b|does\b|focuses\b|series\b|sales\b|results\b|earnings\b|models?\b|minus\b|equals\b|times\b)"
    r"(?:[a-z]{2,}s\b|people\b|men\b|women\b|children\b|feet\b|percent\b|data\b|staff\b|or more\b|or so\b|of (?:them|these|those|the)\b)"
)
_NOT_A_YEAR = re.compile(
    r"(?:\b(?:about|around|over|nearly|almost|approximately|roughly|than|up to|least|most|only|exactly|equals|times|plus|minus|total of|some)\s+)$"
)
_ANY = re.compile(rf"{NUMBER}")
_SLASH = re.compile(r"(?<=\d)/(?=\w)")
_OTHER_DIGITS = re.compile(r"\d+")


def read_ordinals(text: str) -> str:
    """`21st` → twenty first."""
    text = _DECIMAL_ORDINAL.sub(lambda m: f"{_point(m[1])} {ordinal(m[2])}", text)
    return _ORDINAL.sub(lambda m: ordinal(m[1]), text)


def _point(text: str) -> str:
    """`99.` → ninety nine point."""
    return number(text) if text[-1] != "." else f"{number(text[:-1])} point"


def read_plain(text: str) -> str:
    """No digit is left."""
    text = _SLASH.sub(" slash ", text) if "/" in text else text
    text = _FOUR.sub(_four, text)
    text = re.sub(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])", " ", text)
    text = _ANY.sub(lambda m: number(m[0]), text)
    return _OTHER_DIGITS.sub(lambda m: digits(m[0]), text)


def _four(match: re.Match[str]) -> str:
    text = match[1]
    is_count = _COUNTED.match(match.string, match.end()) or _NOT_A_YEAR.search(match.string[: match.start()])
    return cardinal(text) if is_count else year(text)
