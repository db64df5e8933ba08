"""Signs that are left: said where they have a word, else dropped; and the blanks around punctuation."""

from __future__ import annotations

import re
import unicodedata

_WORDS = {
    "&": "and", "%": "percent", "@": "at", "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "₹": "rupees", "¢": "cents", "°": "degrees",
    "₿": "bitcoin", "§": "section", "¶": "paragraph", "‰": "per mille", "†": "", "‡": "",
}  # fmt: skip
_TABLE = str.maketrans({sign: f" {word} " for sign, word in _WORDS.items()})
_HYPHENS = re.compile(r"(?<![A-Za-z])-+|-+(?![A-Za-z'])")
_DASH = re.compile(r"\s*[–—]+\s*|\s+-{1,3}\s+|(?<=\w)--+(?=\w)")
_BRACKETS = re.compile(r"\s*[(\[{]+\s*")
_EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]|\{\s*\}")
_SLASH = re.compile(r"\s/\s")
_CLOSING = re.compile(r"\s*[)\]}]+")
_BULLET = re.compile(r"\s*•\s*")
_KEPT = re.compile(r"[^\w\s.,;:!?'\"-]|_")
_APOSTROPHES = re.compile(r"(?<![A-Za-z])'+(?![A-Za-z])|'{2,}")
_SINGLE_QUOTED = re.compile(r"(?<![\w'])'(?!n'|\d\ds?\b)(\w[^'\n]{0,300}(?:\w'\w[^'\n]{0,300})*[\w.,!?])'(?![\w'])")
_MARKS = re.compile(r"([.,;:!?])(?:\s*[.,;:!?])+")
_BEFORE_MARK = re.compile(r"\s+([.,;:!?])")
_AFTER_MARK = re.compile(r"(?<=[a-zA-Z])([.,;:!?])(?=[A-Za-z])")


def read_signs(text: str) -> str:
    """Letters, apostrophes, hyphens within words, quotation marks and sentence punctuation alone."""
    text = _SINGLE_QUOTED.sub(r'"\1"', text.translate(_TABLE))
    text = _DASH.sub(", ", text)
    text = _SLASH.sub(", ", _BULLET.sub(", ", text))
    text = _EMPTY_BRACKETS.sub(" ", text)
    text = _BRACKETS.sub(", ", text)
    text = _CLOSING.sub(_close, text)
    text = _KEPT.sub(" ", text)
    if not text.isascii():
        text = "".join(char if char.isascii() or _is_letter(char) else " " for char in text)
    text = _HYPHENS.sub(" ", text)
    text = _APOSTROPHES.sub(" ", text)
    return tidy(text)


def tidy(text: str) -> str:
    """One blank between words, none before punctuation, one mark where several meet."""
    text = " ".join(text.split())
    text = _BEFORE_MARK.sub(r"\1", text)
    text = _MARKS.sub(_one_mark, text)
    text = _AFTER_MARK.sub(r"\1 ", text)
    text = text.lstrip(".,;:!?- ")
    return " ".join(text.split())


def _is_letter(char: str) -> bool:
    return char.isalpha() and unicodedata.category(char) != "Lm"


def _close(match: re.Match[str]) -> str:
    """A bracket that closes in mid-sentence is a comma; before other punctuation it is nothing."""
    after = match.string[match.end() :].lstrip()
    return ", " if after and after[0].isalnum() else " "


def _one_mark(match: re.Match[str]) -> str:
    """Of marks that meet, the one that says most."""
    marks = match[0].replace(" ", "")
    if set(marks) == {"."}:
        return "..." if len(marks) > 1 else "."
    return next(mark for mark in "?!.;:," if mark in marks)
