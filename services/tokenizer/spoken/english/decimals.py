"""Numbers as other countries write them: 2,5 km, 1.000.000, 1'000, 10 000, 1,50,000."""

from __future__ import annotations

import re

_SPACES = "\u00a0\u2009\u202f"  # which part the digits of one number
_ROUND_THOUSANDS = re.compile(
    r"(?<![\d.,])\d{1,3}(?: \d{3})* 000(?![\d.,]\d|\d| \d)|(?<=[€£$¥] )\d{1,3}(?: \d{3})+(?!\d)|(?<![\d.,])\d{1,3}(?: \d{3})+(?= ?[€£])"
)
_INDIAN = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
_GROUPED = re.compile(rf"(?<![\d{_SPACES}.,])\d{{1,3}}(?:[{_SPACES}]\d{{3}})+(?!\d)")
_SPACE = re.compile(rf"[{_SPACES}]")
_COMMA = re.compile(
    r"(?<![\w.,])(\d{1,3}),(\d{1,2})(?=\s?(?:%|°|(?:km|kg|cm|mm|m|l|ml|g|mg|lit(?:er|re)s?|met(?:er|re)s?|hours?|miles?|million|"
    r"billion|percent|degrees?)\b))"
)
_POINTS = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![\w.]|,\d)")
_APOSTROPHES = re.compile(r"(?<![\w.,'])\d{1,3}(?:'\d{3})+(?![\w'])")


def read_groups(text: str) -> str:
    """Groups of digits parted by commas, as in American English; all spaces are blanks."""
    text = _INDIAN.sub(lambda m: f"{int(m[0].replace(',', '')):,}", text) if "," in text else text
    text = _ROUND_THOUSANDS.sub(lambda m: m[0].replace(" ", ","), text) if "000" in text or "€" in text else text
    if text.isascii():
        return text
    return _SPACE.sub(" ", _GROUPED.sub(lambda m: re.sub(r"\D", ",", m[0]), text))


def read_decimals(text: str) -> str:
    """In American signs; the digits are read later."""
    text = _COMMA.sub(r"\1.\2", text)
    text = _POINTS.sub(lambda m: m[0].replace(".", ","), text)
    return _APOSTROPHES.sub(lambda m: m[0].replace("'", ","), text)
