"""How texts are compared: one form for each way of writing the same words, then edits counted.

Policy: Whisper's own English normaliser (spelt numbers become digits, contractions are opened, punctuation goes),
then, because dates, prices and times can be written in several right ways: ordinals lose their ending (14th = 14),
signs of money go and a decimal point joins ($24.50 = 24 50 = 2450), digit groups that stand side by side become one
word (9 30 = 930), and "a m", "p m" become one word. A wrong digit is then one wrong word.
"""

from __future__ import annotations

import re

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from services.tokenizer.spoken.form import NotSpeakable, SpokenForm

_ENGLISH = SpokenForm(("en",))
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


def is_wanted(heard: str, spoken: str) -> bool:
    """Whether `heard`, as a recogniser writes it, says the words of `spoken`.

    It writes $25, FBI, 2.0.1 or 555123 for what it heard as words: read as a text, or as digits.
    """
    heard = _as_written(heard)
    readings = [heard, _digits_apart(heard)]
    try:
        readings.append(_ENGLISH.of(_digits_apart(heard)))
    except NotSpeakable:
        return False
    return spoken_words(spoken) in map(spoken_words, readings)


def spoken_words(text: str) -> str:
    """`plain` for texts with letters and digits that are said one by one, without blanks: F B I = F.B.I. = fbi."""
    text = _one_flap(_digits_apart(text.replace("-", " ")))
    text = re.sub(r"\b(?<!')[A-Za-z]\b(?: [A-Za-z](?:'?s|\b))+", lambda m: re.sub(r"[ ']", "", m[0]), text)
    # Whisper's normaliser makes signs of these two, which would be lost with the other signs.
    text = re.sub(r"\b(plus|minus)\b", r"\1sign", text, flags=re.I)
    # It leaves a "one" that stands alone a word.
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\bone\b", "1", plain(text)))


def _digits_apart(text: str) -> str:
    """Digits that were said one by one, as a recogniser may write them: 4.4.2.0."""
    return re.sub(r"\b(?:\d[.,-] ?){3,}\d\b", lambda m: re.sub(r"\D+", " ", m[0]), text)


def _as_written(heard: str) -> str:
    """ "report final .pdf" is a file's name in which a blank is heard: the dot was said as much as in "final.pdf"."""
    return re.sub(r"(?<=\w) \.(?=[a-z])", ".", heard)


def _one_flap(text: str) -> str:
    """ "rate it eight" is "rated eight": between vowels American speech makes one flap of t and d, so both sound alike."""
    return re.sub(r"(?<=[aeiou]t)e? it (?=[aeiou8]|11\b|18\b)", "ed ", text)
