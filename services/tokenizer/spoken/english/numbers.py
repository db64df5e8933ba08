"""Numbers in words. The words are num2words'; which kind of number it is, the other modules decide."""

from __future__ import annotations

import re
from functools import lru_cache

from num2words import num2words

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
MAGNITUDES = {
    "k": "thousand", "K": "thousand", "M": "million", "m": "million", "mn": "million", "mm": "million",
    "MM": "million", "mil": "million", "B": "billion", "bn": "billion", "Bn": "billion", "b": "billion",
    "T": "trillion", "tn": "trillion", "trn": "trillion",
}  # fmt: skip
MAGNITUDE_WORDS = "hundred|thousand|million|billion|trillion|quadrillion"
_LONGEST_CARDINAL = 15  # digits; longer ones are read digit by digit
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def cardinal(text: str) -> str:
    """`1,234` → one thousand two hundred thirty four. A leading zero, or too many digits, spells it."""
    bare = text.replace(",", "")
    if len(bare) > _LONGEST_CARDINAL or (bare[0] == "0" and len(bare) > 1):
        return digits(bare)
    return _cardinal(int(bare))


def number(text: str) -> str:
    """`1,234.50` → … point five zero."""
    whole, point, rest = text.partition(".")
    words = cardinal(whole) if whole else "zero" if not point else ""
    return f"{words} point {digits(rest)}".strip() if point else words


def ordinal(text: str) -> str:
    """`21` → twenty first."""
    bare = text.replace(",", "")
    return _plain(num2words(int(bare), to="ordinal")) if len(bare) <= _LONGEST_CARDINAL else digits(bare)


def year(text: str) -> str:
    """`1984` → nineteen eighty four. Of more or fewer than four digits: as a number."""
    value = int(text)
    if not 1000 <= value <= 2999 or len(text) != 4:
        return cardinal(text)
    if 2000 <= value <= 2009 or value % 1000 == 0:
        return _cardinal(value)
    high, low = divmod(value, 100)
    if low == 0:
        return f"{_cardinal(high)} hundred"
    return f"{_cardinal(high)} {'oh ' if low < 10 else ''}{_cardinal(low)}"


def pairs(high: str, low: str) -> str:
    """Two digits and two as models are named: 40, 90 → forty ninety; 79, 00 → seventy nine hundred."""
    return (
        f"{cardinal(high)} {'hundred' if low == '00' else cardinal(low) if low[0] != '0' else 'oh ' + cardinal(low[1])}"
    )


def decade(text: str) -> str:
    """`1990` → nineteen nineties, `80` → eighties."""
    words = year(text) if len(text) == 4 else cardinal(text)
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def digits(text: str) -> str:
    """`007` → zero zero seven; what is no digit parts the groups."""
    groups = re.findall(r"\d+", text)
    return ", ".join(" ".join(_DIGITS[int(digit)] for digit in group) for group in groups)


def scientific(sign: str | None, amount: str, power: str) -> str:
    """`5e-3` → five times ten to the minus three."""
    lead = "minus " if power[0] in "-−" else ""
    words = f"{number(amount)} times ten to the {lead}{cardinal(str(int(power.lstrip('-−+'))))}"
    return f"minus {words}" if sign else words


def is_one(text: str) -> bool:
    """Whether what is counted stays in the singular."""
    return text in ("1", "1.0", "-1", "−1")


@lru_cache(maxsize=4096)
def _cardinal(value: int) -> str:
    return _plain(num2words(value))


def _plain(words: str) -> str:
    """American English: seven hundred ninety nine. With an "and" in it, $799 is heard as $700 and $99."""
    return words.replace("-", " ").replace(",", "").replace(" and ", " ")
