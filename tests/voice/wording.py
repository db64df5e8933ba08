"""How texts are compared: one form for each way of writing the same words, then edits counted.

Policy: Whisper's own English normaliser (spelt numbers become digits, contractions are opened, punctuation goes),
then, because dates, prices and times can be written in several right ways: ordinals lose their ending (14th = 14),
signs of money go and a decimal point joins ($24.50 = 24 50 = 2450), digit groups that stand side by side become one
word (9 30 = 930), and "a m", "p m" become one word. A wrong digit is then one wrong word.
"""

from __future__ import annotations

import re

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

_WHISPER = EnglishTextNormalizer({"grey": "gray", "colour": "color", "favourite": "favorite", "neighbour": "neighbor",
    "neighbours": "neighbors", "neighbourhood": "neighborhood", "theatre": "theater"})  # fmt: skip


def plain(text: str) -> str:
    """The form in which a text is compared."""
    text = _WHISPER(text)
    text = re.sub(r"\b([ap]) m\b", r"\1m", text)
    text = re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"[$£€¢]", "", text)
    text = re.sub(r"(?<=\d)[.,](?=\d)", "", text)
    text = re.sub(r"%", " percent", text)
    text = re.sub(r"(?<=\d) (?=\d)", "", text)
    text = re.sub(r"\b(\d+)(am|pm)\b", r"\1 \2", text)
    return " ".join(text.split())


def digits_apart(text: str) -> str:
    """Digits that were said one by one, as a recogniser may write them: 4.4.2.0."""
    return re.sub(r"\b(?:\d[.,-] ?){3,}\d\b", lambda m: re.sub(r"\D+", " ", m[0]), text)


def spoken_words(text: str) -> str:
    """`plain` for texts with letters and digits that are said one by one, without blanks: F B I = F.B.I. = fbi."""
    text = digits_apart(text.replace("-", " "))
    text = re.sub(r"\b(?<!')[A-Za-z]\b(?: [A-Za-z](?:'?s|\b))+", lambda m: re.sub(r"[ ']", "", m[0]), text)
    return re.sub(r"[^a-z0-9]", "", plain(text))


class Tally:
    """Errors over many utterances."""

    def __init__(self) -> None:
        self.want: list[str] = []
        self.got: list[str] = []

    def add(self, want: str, got: str) -> None:
        """Both already `plain`."""
        self.want.append(want)
        self.got.append(got)

    @property
    def wer(self) -> float:
        """Word errors over words, in per cent."""
        return 100 * jiwer.wer(self.want, self.got)

    @property
    def cer(self) -> float:
        """Character errors over characters, in per cent."""
        return 100 * jiwer.cer(self.want, self.got)

    @property
    def words(self) -> int:
        return sum(len(text.split()) for text in self.want)
